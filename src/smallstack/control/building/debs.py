"""Package files: kept by SHA-256, told of, laid out as a repository for debootstrap.

The formats are deb(5), deb-control(5) and the Debian repository format.
"""

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from smallstack.control.building.confine import BuildError
from smallstack.control.building.room import in_root
from smallstack.images.package_lock import LockedPackage
from smallstack.proto.image import Package
from smallstack.telemetry.errors import describe

_CHUNK: Final = 1 << 20
_AR: Final = b"!<arch>\n"
_DIGESTS: Final = ("md5", "sha256")


class DebCache:
    """Package files by SHA-256. Every file is checked when it enters and when it is used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: str) -> Path:
        """Where a file is, or would be."""
        return self._directory / sha256[:2] / f"{sha256}.deb"

    def has(self, package: LockedPackage) -> bool:
        """Whether the file is there and whole; one that is damaged is removed."""
        path = self.path(package.sha256)
        try:
            whole = path.stat().st_size == package.size and _sha256(path) == package.sha256
        except FileNotFoundError:
            return False
        if not whole:
            path.unlink()
        return whole

    def add(self, source: Path) -> tuple[str, int]:
        """Take a copy of a file; its SHA-256 and size. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with (
            source.open("rb") as file,
            tempfile.NamedTemporaryFile(dir=self._directory, prefix="new-") as new,
        ):
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                new.write(chunk)
                size += len(chunk)
            new.flush()
            path = self.path(digest.hexdigest())
            path.parent.mkdir(exist_ok=True)
            entering = path.with_suffix(".deb~")
            entering.unlink(missing_ok=True)
            entering.hardlink_to(new.name)
            entering.replace(path)  # what was there may be damaged
        return digest.hexdigest(), size

    def lay_out(self, packages: Sequence[LockedPackage], directory: Path) -> None:
        """Link the files under their own names into a new directory; all are there."""
        directory.mkdir(parents=True)
        for package in packages:
            (directory / package.file).hardlink_to(self.path(package.sha256))


def locked(cache: DebCache, path: Path, priority: str = "") -> LockedPackage:
    """What a package file is, after it was taken into the cache. Raises BuildError."""
    control = control_fields(path)
    try:
        sha256, size = cache.add(path)
    except OSError as error:
        raise BuildError(step=path.name, detail=f"cannot be kept: {describe(error)}") from error
    return LockedPackage(
        name=control["Package"],
        version=control["Version"],
        architecture=control["Architecture"],
        file=path.name,
        size=size,
        sha256=sha256,
        priority=priority or control.get("Priority", ""),
    )


def control_text(path: Path) -> str:
    """The control file of a package; raises BuildError."""
    try:
        done = subprocess.run(
            ["dpkg-deb", "--field", str(path)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(step="dpkg-deb", detail=f"cannot run: {describe(error)}") from error
    if done.returncode or not done.stdout.strip():
        raise BuildError(step=path.name, detail=f"is no package: {done.stderr.strip()}")
    return done.stdout.strip() + "\n"


def control_fields(path: Path) -> Mapping[str, str]:
    """Its single-line fields; Package, Version and Architecture are always there."""
    fields = next(stanzas(control_text(path)))
    for name in ("Package", "Version", "Architecture"):
        if name not in fields:
            raise BuildError(step=path.name, detail=f"has no {name}")
    return fields


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file, first lines of their fields only."""
    for paragraph in text.split("\n\n"):
        fields = {}
        for line in paragraph.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith((" ", "\t", "#")):
                fields[name] = value.strip()
        if fields:
            yield fields


def built_at(path: Path) -> int:
    """When a package was built, in s: the time of its archive's first member; 0 if it says none.

    That is SOURCE_DATE_EPOCH of the package's own build.
    """
    with path.open("rb") as file:
        head = file.read(len(_AR) + 60)
    stamp = head[len(_AR) + 16 : len(_AR) + 28].strip()
    return int(stamp) if head.startswith(_AR) and stamp.isdigit() else 0


def write_repository(
    directory: Path, suite: str, packages: Sequence[LockedPackage], architecture: str
) -> None:
    """Make a repository of package files that lie in ``directory``/pool already.

    Its Priority is the lock's: the archive's, not the package's own. Raises BuildError.
    """
    index = []
    for package in sorted(packages, key=lambda package: package.file):
        path = directory / "pool" / package.file
        control = "\n".join(
            line for line in control_text(path).splitlines() if not line.startswith("Priority:")
        )
        index.append(
            f"{control}\nPriority: {package.priority or 'optional'}\n"
            f"Filename: pool/{package.file}\nSize: {package.size}\nSHA256: {package.sha256}\n\n"
        )
    text = "".join(index).encode()
    top = directory / "dists" / suite
    name = f"main/binary-{architecture}/Packages"
    (top / name).parent.mkdir(parents=True)
    (top / name).write_bytes(text)
    release = f"Suite: {suite}\nCodename: {suite}\nComponents: main\n"
    release += f"Architectures: {architecture}\n"
    for title, algorithm in zip(("MD5Sum", "SHA256"), _DIGESTS, strict=True):
        digest = hashlib.new(algorithm, text).hexdigest()
        release += f"{title}:\n {digest} {len(text)} {name}\n"
    (top / "Release").write_text(release)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_packages(root: Path) -> list[Package]:
    """What dpkg has installed in a tree; sizes in bytes."""
    status = in_root(root, "/var/lib/dpkg/status")
    if not status.is_file():
        return []
    found = []
    for fields in stanzas(status.read_text(errors="replace")):
        if fields.get("Status", "").endswith(" installed"):
            size = fields.get("Installed-Size", "0")
            found.append(
                Package(
                    name=fields.get("Package", ""),
                    version=fields.get("Version", ""),
                    size=int(size) * 1024 if size.isdigit() else 0,
                )
            )
    return sorted(found, key=lambda package: package.name)
