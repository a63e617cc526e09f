"""The file ``package-lock`` of a manifest: every package a build used, by SHA-256.

With it, and the packages in the cache, a build asks no mirror and gives the same image again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from smallstack.durable import replace_file
from smallstack.images.errors import ManifestError
from smallstack.images.manifest import MAX_FILE, Manifest, decode
from smallstack.telemetry.errors import describe

NAME: Final = "package-lock"
MAX_BYTES: Final = 16 * MAX_FILE
_FILE: Final = r"^[A-Za-z0-9.+%~_-]+\.deb$"


class LockedPackage(
    msgspec.Struct, rename="pascal", forbid_unknown_fields=True, frozen=True, kw_only=True
):
    """A package file. ``priority`` is the archive's, which debootstrap goes by."""

    name: str
    version: str
    architecture: str
    file: Annotated[str, msgspec.Meta(pattern=_FILE, max_length=255)]
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    priority: Annotated[str, msgspec.Meta(pattern="^[a-z]*$")] = ""


class PackageLock(
    msgspec.Struct, rename="pascal", forbid_unknown_fields=True, frozen=True, kw_only=True
):
    """What a build was made of. ``source_tree`` is the source image's `model.tree_digest`."""

    format: Literal[1] = 1
    source_image: str = ""
    source_tree: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    bootstrap_suite: str = ""
    bootstrap_include: list[str] = []
    bootstrap: list[LockedPackage] = []
    package_list: list[str] = []
    packages: list[LockedPackage] = []


def load_lock(manifest: Manifest) -> PackageLock | None:
    """The lock of a manifest, None when it has none.

    Raises ManifestError, also when the manifest asks for other packages than the lock has.
    """
    path = manifest.directory / NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(path=path, detail=describe(error)) from error
    if len(data) > MAX_BYTES:
        raise ManifestError(path=path, detail=f"it has more than {MAX_BYTES} bytes")
    lock = decode(path, data, PackageLock)
    recipe = manifest.recipe
    suite, include = "", list[str]()
    if recipe.bootstrap is not None:
        suite, include = recipe.bootstrap.suite, recipe.bootstrap.include
    for what, wanted, locked in (
        ("package-list", manifest.packages, lock.package_list),
        ("Bootstrap.Suite", suite, lock.bootstrap_suite),
        ("Bootstrap.Include", include, lock.bootstrap_include),
    ):
        if wanted != locked:
            detail = f"it was made for another {what}: build with --lock to make it anew"
            raise ManifestError(path=path, detail=detail)
    return lock


def write_lock(manifest: Manifest, lock: PackageLock) -> Path:
    """Write the lock into the manifest's directory; where it is. Raises ManifestError."""
    path = manifest.directory / NAME
    text = msgspec.json.format(msgspec.json.encode(lock), indent=1) + b"\n"
    try:
        replace_file(path, text)
    except OSError as error:
        raise ManifestError(path=path, detail=describe(error)) from error
    return path


def total_size(packages: Sequence[LockedPackage]) -> int:
    """Bytes of all files."""
    return sum(package.size for package in packages)
