"""Image manifests: a directory that says what an image is built of.

The names and the order are those of the ecosystem's own builder (its user guide, "Manifest
Components"); what is marked with * is ours::

    manifest               JSON: SourceImage, FilterLines, …; Bootstrap* and what `Recipe` has*
    files/                 laid over the tree first (files, directories, symlinks; root's)
    files.append/          appended to what is there
    pre-install-scripts/   run in the order of their names, in the image as their root
    package-list           packages to install, one a line
    package-lock*          those packages, and what they need, by SHA-256: see `package_lock`
    post-install-files/    post-install-files.append/
    scripts/
    post-scripts-files/
    post-cleanup-scripts/
    tests/                 go to /tests in the image and are run there at the end
    computed-files[.add][.json]   filter[.add]   triggers[.add]   tags.json   owners.json
    file-owners.json*      {"/path": {"Uid": 1, "Gid": 2, "Mode": "0640"}} for what is laid over

Nothing here writes or runs anything. Every error names the file and, in JSON, the field.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from smallstack.images.errors import ManifestError
from smallstack.images.filter import PathFilter, load_filter
from smallstack.images.triggers import load_triggers
from smallstack.proto.filesystem import ComputedFile
from smallstack.proto.image import Filter, Triggers
from smallstack.telemetry.errors import SmallStackError, describe

T = TypeVar("T")

MAX_FILE: Final = 1 << 20
MAX_NAMES: Final = 10_000
PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
"""A package as apt-get takes it: a name, perhaps ``:architecture``, perhaps ``=version``."""

OVERLAYS: Final = ("files", "post-install-files", "post-scripts-files")
APPENDED: Final = ("files.append", "post-install-files.append")
SCRIPTS: Final = ("pre-install-scripts", "scripts", "post-cleanup-scripts", "tests")
_FILES: Final = frozenset({
    "manifest", "package-list", "package-lock", "computed-files", "computed-files.json",
    "computed-files.add", "computed-files.add.json", "filter", "filter.add", "triggers",
    "triggers.add", "tags.json", "owners.json", "file-owners.json",
})  # fmt: skip
_WORD: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Word = Annotated[str, msgspec.Meta(pattern=_WORD, max_length=64)]
PackageName = Annotated[str, msgspec.Meta(pattern=f"^{PACKAGE.pattern}$", max_length=256)]


class _Json(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A JSON object whose fields are all known."""


class Bootstrap(_Json, frozen=True, kw_only=True):
    """A first tree by debootstrap. ``mirror`` ends up in the image's sources.list as well."""

    type: Literal["debootstrap"] = "debootstrap"
    suite: Word
    variant: Literal["", "minbase", "buildd"] = ""
    components: Annotated[list[Word], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["main"]
    )
    include: list[PackageName] = []
    mirror: Annotated[str, msgspec.Meta(pattern=r"^((https?|file)://?\S+)?$")] = ""


class Recipe(_Json, frozen=True, kw_only=True):
    """The file ``manifest``. A tree begins with one of ``source_image`` and ``bootstrap``."""

    source_image: str = ""
    source_image_build_variables: dict[str, str] = {}
    source_image_git_commit_id: str = ""
    source_image_tags_to_match: dict[str, list[str]] = {}
    filter_lines: list[str] = []
    mtimes_copy_add_filter_lines: list[str] = []
    mtimes_copy_filter_lines: list[str] = []
    bootstrap: Bootstrap | None = None
    install_recommends: bool = False
    script_network: bool = False
    """Scripts may use this machine's network; what they fetch is outside reproducibility."""
    script_time_limit: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 600
    """Seconds for one script; a test has 10."""
    source_date_epoch: Annotated[int, msgspec.Meta(ge=0, le=2**33)] | None = None
    """No file is newer than this (s); without it the newest of the inputs counts."""
    keep: list[str] = []
    """Rows of `normalise.TABLE` that are left out."""


class Owner(_Json, frozen=True, kw_only=True):
    """Who owns what is laid over; ``mode`` in octal."""

    uid: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] = 0
    gid: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] = 0
    mode: Annotated[str, msgspec.Meta(pattern="^[0-7]{3,5}$")] = ""


class Owners(_Json, frozen=True, kw_only=True):
    """The file ``owners.json``: who may delete the image."""

    groups: list[str] = []
    users: list[str] = []


@dataclass(frozen=True)
class Manifest:
    """A manifest directory that was read whole. ``*_added``: joined to the source image's."""

    directory: Path
    recipe: Recipe
    packages: list[str] = field(default_factory=list)
    scripts: dict[str, list[str]] = field(default_factory=dict)
    """The names of each directory of `SCRIPTS`, in the order they run."""
    overlays: frozenset[str] = frozenset()
    """Which of `OVERLAYS` and `APPENDED` are there."""
    owners: dict[str, Owner] = field(default_factory=dict)
    filter: Filter | None = None
    filter_added: bool = False
    triggers: Triggers | None = None
    triggers_added: bool = False
    computed: list[ComputedFile] = field(default_factory=list)
    computed_added: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    image_owners: Owners = field(default_factory=Owners)
    warnings: list[str] = field(default_factory=list)


def load_manifest(directory: Path) -> Manifest:
    """Read and check a manifest directory.

    Raises ManifestError, FilterError and TriggersError.
    """
    names = _names(directory)
    if "manifest" not in names:
        raise ManifestError(
            path=directory, detail='there is no file "manifest": write {"SourceImage": "NAME"}'
        )
    known = _FILES.union(OVERLAYS, APPENDED, SCRIPTS)
    warnings = [
        f"{directory / name} has no part in a build"
        for name in names
        if name not in known and not name.startswith((".", "README"))
    ]
    recipe = _json(directory / "manifest", Recipe)
    warnings += _check(directory / "manifest", recipe)
    for name in (*OVERLAYS, *APPENDED):
        if name in names:
            _check_overlay(directory / name, links=name in OVERLAYS)
    computed, computed_added = _computed(directory, names)
    own_filter = _either(directory, names, "filter", load_filter)
    own_triggers = _either(directory, names, "triggers", load_triggers)
    owners: dict[str, Owner] = {}
    if "file-owners.json" in names:
        owners = _json(directory / "file-owners.json", dict[str, Owner])
    tags: dict[str, str] = {}
    if "tags.json" in names:
        tags = _json(directory / "tags.json", dict[str, str])
    return Manifest(
        directory=directory,
        recipe=recipe,
        packages=_packages(directory / "package-list") if "package-list" in names else [],
        scripts={name: _scripts(directory / name) for name in SCRIPTS if name in names},
        overlays=frozenset(names).intersection(OVERLAYS + APPENDED),
        owners=owners,
        filter=own_filter,
        filter_added="filter.add" in names,
        triggers=own_triggers,
        triggers_added="triggers.add" in names,
        computed=computed,
        computed_added=computed_added,
        tags=tags,
        image_owners=_json(directory / "owners.json", Owners)
        if "owners.json" in names
        else Owners(),
        warnings=warnings,
    )


def decode(path: Path, data: bytes, kind: type[T]) -> T:
    """JSON of a file of the manifest; raises ManifestError that names file and field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(path=path, detail=describe(error)) from None


def _json(path: Path, kind: type[T]) -> T:
    return decode(path, _read(path), kind)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ManifestError(path=path, detail=error.strerror) from error
    if len(data) > MAX_FILE:
        raise ManifestError(path=path, detail=f"it has more than {MAX_FILE} bytes")
    return data


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of every line that is neither empty nor a comment."""
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise ManifestError(path=path, detail=f"it is not UTF-8: {describe(error)}") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _names(directory: Path) -> list[str]:
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names
    except OSError as error:
        raise ManifestError(path=directory, detail=error.strerror) from error
    if len(names) > MAX_NAMES:
        raise ManifestError(path=directory, detail=f"more than {MAX_NAMES} names are in it")
    return names


def _check(path: Path, recipe: Recipe) -> list[str]:
    """What the types cannot say; lines about fields that have no effect here."""
    if bool(recipe.source_image) == (recipe.bootstrap is not None):
        raise ManifestError(path=path, detail="give one of SourceImage and Bootstrap")
    try:
        PathFilter(recipe.filter_lines, place=f"{path}: FilterLines")
    except SmallStackError as error:
        raise ManifestError(path=path, detail=f"FilterLines: {describe(error)}") from None
    unused = {
        "SourceImageBuildVariables": recipe.source_image_build_variables,
        "MtimesCopyAddFilterLines": recipe.mtimes_copy_add_filter_lines,
        "MtimesCopyFilterLines": recipe.mtimes_copy_filter_lines,
    }
    return [
        f"{path}: {name} has no effect in this builder" for name, value in unused.items() if value
    ]


def _check_overlay(top: Path, *, links: bool) -> None:
    """Directories, files and, with ``links``, symlinks; nothing that a build could not lay."""
    if top.is_symlink() or not top.is_dir():
        raise ManifestError(path=top, detail="it is no directory")
    for where, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(where, name)
            kind = stat.S_IFMT(path.lstat().st_mode)
            if kind not in {stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK}:
                detail = "only files, directories and symlinks can be laid over"
                raise ManifestError(path=path, detail=detail)
            if kind == stat.S_IFLNK and not links:
                raise ManifestError(path=path, detail="a symlink cannot be appended")


def _scripts(directory: Path) -> list[str]:
    names = _names(directory)
    for name in names:
        path = directory / name
        if not path.is_file():
            raise ManifestError(path=path, detail="only scripts belong here")
        if not path.stat().st_mode & 0o111:
            raise ManifestError(path=path, detail=f"it is not executable: chmod +x {path}")
    return names


def _packages(path: Path) -> list[str]:
    found = []
    for number, line in _lines(path):
        if not PACKAGE.fullmatch(line):
            raise ManifestError(path=path, detail=f"line {number}: {line!r} is no package")
        found.append(line)
    return found


def _either(directory: Path, names: list[str], name: str, load: Callable[[Path], T]) -> T | None:
    """What ``name`` or ``name.add`` holds; both at once are refused."""
    if name in names and f"{name}.add" in names:
        raise ManifestError(path=directory, detail=f"it has both {name} and {name}.add")
    for found in (name, f"{name}.add"):
        if found in names:
            return load(directory / found)
    return None


def _computed(directory: Path, names: list[str]) -> tuple[list[ComputedFile], bool]:
    kinds = [name for name in sorted(_FILES) if name.startswith("computed-files")]
    found = [name for name in kinds if name in names]
    if not found:
        return [], False
    if len(found) > 1:
        raise ManifestError(path=directory, detail=f"it has both {found[0]} and {found[1]}")
    path = directory / found[0]
    files = []
    if path.suffix == ".json":
        entries = _json(path, list[dict[str, str]])
        pairs = [(e.get("Filename", ""), e.get("Source", "")) for e in entries]
        files = [(number, *pair) for number, pair in enumerate(pairs, 1)]
    else:
        for number, line in _lines(path):
            name, _, source = line.partition(" ")
            files.append((number, name, source.strip()))
    for number, name, source in files:
        if not name.startswith("/") or not source:
            detail = f"entry {number}: write an absolute Filename and a Source (host:port)"
            raise ManifestError(path=path, detail=detail)
    computed = [ComputedFile(filename=name, source=source) for _, name, source in files]
    return computed, ".add" in path.name
