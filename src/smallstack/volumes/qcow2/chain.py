"""Opens a disk by its path: the image, a moment of it, and every backing file below.

One `Files` holds the descriptors of all disks that are looked at together, so that two chains with
a common backing file share it, and what differs can be told from the tables alone. A backing
file's name is taken as QEMU does: relative to the directory of the image that names it. Nothing is
guessed about a backing file: the image must say its format, unless the file cannot be taken for
anything but raw. (A guest can write whatever it likes into its raw disk, a qcow2 header too.)
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from smallstack.volumes.qcow2.errors import (
    BackingError,
    BitmapNotFoundError,
    DiskUnreadableError,
    DiskUnsupportedError,
    SnapshotNotFoundError,
)
from smallstack.volumes.qcow2.image import Qcow2, View

if TYPE_CHECKING:
    from smallstack.volumes.qcow2.image import Part

MAX_DEPTH: Final = 256
FORMATS: Final = ("raw", "qcow2")
_MAGIC: Final = b"QFI\xfb"


@dataclass(frozen=True)
class Layer:
    """One file of a chain; ``image`` is None for a raw one, ``snapshot`` -1 for the present."""

    path: Path
    fd: int
    image: Qcow2 | None
    snapshot: int
    size: int

    @property
    def part(self) -> "Part":
        """What a `View` takes."""
        if self.image is not None:
            return self.image, self.snapshot
        return self.fd, self.size, str(self.path)


class Disk:
    """A chain of layers from the top down, as a guest would see it. Made by `Files.open`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.view = View(layer.part for layer in layers)

    @property
    def path(self) -> Path:
        """The topmost file."""
        return self.layers[0].path

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.view.size

    @property
    def image(self) -> Qcow2 | None:
        """The topmost image, None when it is a raw file."""
        return self.layers[0].image


class Files:
    """Open files of disks that are looked at together. A context manager that closes them."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], tuple[int, Path]] = {}
        self._images: dict[tuple[int, int], Qcow2] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; disks opened here are of no use afterwards."""
        self._images.clear()
        while self._open:
            os.close(self._open.popitem()[1][0])

    def open(
        self,
        path: Path,
        *,
        snapshot: str | None = None,
        disk_format: str | None = None,
        backing: bool = True,
    ) -> Disk:
        """The disk at ``path``, or as it was at ``snapshot`` (an id or a name).

        ``disk_format`` is one of FORMATS; None takes what begins as qcow2 images do for one.
        ``backing=False`` refuses an image that has a backing file, as is right for files of
        unknown origin. Raises the classes of ``errors``.
        """
        layers: list[Layer] = []
        key, fd = self._file(path)
        kind = disk_format or ("qcow2" if _has_magic(fd) else "raw")
        seen = set()
        while True:
            seen.add(key)
            layer = self._layer(path, key, fd, kind, None if layers else snapshot)
            layers.append(layer)
            name = layer.image.backing if layer.image is not None else None
            if layer.image is None or name is None:
                return Disk(layers)
            if not backing:
                raise BackingError(path=path, backing=name, detail="is not allowed here")
            if len(layers) == MAX_DEPTH:
                raise BackingError(path=path, backing=name, detail="is too deep down")
            below = _backing_path(path, name)
            try:
                key, fd = self._file(below)
            except DiskUnreadableError as error:
                raise BackingError(
                    path=path, backing=name, detail=f"cannot be read: {error.detail}"
                ) from error
            if key in seen:
                raise BackingError(path=path, backing=name, detail="leads back to the image")
            kind = _backing_format(path, name, layer.image.backing_format, fd)
            path = below

    def open_image(self, path: Path) -> Qcow2 | None:
        """The image at ``path`` alone, whatever is below it; None when it is not qcow2."""
        key, fd = self._file(path)
        return self._layer(path, key, fd, "qcow2", None).image if _has_magic(fd) else None

    def again(self, disk: Disk) -> Disk:
        """The same disk with images of its own, for another thread."""
        return Disk(
            [
                Layer(
                    layer.path,
                    layer.fd,
                    None if layer.image is None else Qcow2(layer.fd, str(layer.path)),
                    layer.snapshot,
                    layer.size,
                )
                for layer in disk.layers
            ]
        )

    def _file(self, path: Path) -> tuple[tuple[int, int], int]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DiskUnreadableError(path=path, detail=error.strerror or "") from error
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            os.close(fd)
            raise DiskUnreadableError(path=path, detail="it is neither a file nor a block device")
        key = (status.st_dev, status.st_ino)
        if key in self._open:
            os.close(fd)
        else:
            self._open[key] = (fd, path)
        return key, self._open[key][0]

    def _layer(
        self, path: Path, key: tuple[int, int], fd: int, kind: str, snapshot: str | None
    ) -> Layer:
        if kind == "raw":
            if snapshot is not None:
                raise SnapshotNotFoundError(path=path, name=snapshot, names="none: it is raw")
            return Layer(path, fd, None, -1, os.lseek(fd, 0, os.SEEK_END))
        if key not in self._images:
            self._images[key] = Qcow2(fd, str(path))
        image = self._images[key]
        index = -1 if snapshot is None else find_snapshot(image, snapshot)
        size = image.size if index < 0 else image.snapshots()[index][2]
        return Layer(path, fd, image, index, size)


def find_snapshot(image: Qcow2, name: str) -> int:
    """The index of the snapshot with this id, or else with this name."""
    snapshots = image.snapshots()
    for column in (0, 1):
        for index, snapshot in enumerate(snapshots):
            if snapshot[column] == name:
                return index
    names = ", ".join(s[1] or s[0] for s in snapshots) or "none"
    raise SnapshotNotFoundError(path=image.path, name=name, names=names)


def find_bitmap(image: Qcow2, name: str) -> int:
    """The index of the bitmap of this name; raises BitmapNotFoundError also for an unsaved one."""
    for index, (have, _, usable) in enumerate(image.bitmaps()):
        if have == name and usable:
            return index
    names = ", ".join(b[0] for b in image.bitmaps() if b[2]) or "none"
    raise BitmapNotFoundError(path=image.path, name=name, names=names)


def _has_magic(fd: int) -> bool:
    return os.pread(fd, 4, 0) == _MAGIC


def _backing_path(path: Path, name: str) -> Path:
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif ":" in name.partition("/")[0]:
        raise BackingError(path=path, backing=name, detail="is not the name of a file")
    return path.parent / name


def _backing_format(path: Path, name: str, recorded: str | None, fd: int) -> str:
    if recorded is None:
        if _has_magic(fd):
            raise BackingError(
                path=path,
                backing=name,
                detail="may be raw or qcow2, the image does not say: "
                "`qemu-img rebase -u -F FORMAT` records it",
            )
        return "raw"
    if recorded in ("file", "host_device"):
        return "raw"
    if recorded not in FORMATS:
        raise DiskUnsupportedError(path=path, detail=f"its backing file has format {recorded!r}")
    return recorded
