"""Puts what an overlay holds into the file below it.

The overlay stays as it is, and reads the same before, during and after: so a commit that was cut
off is done again, and nothing is lost. A qcow2 file below changes in one step (csrc/qcow2_edit.h);
a raw one in place, once the room for all of it is taken. Time follows what the overlay holds.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smallstack.volumes.qcow2 import write
from smallstack.volumes.qcow2.chain import Disk, Files, Layer
from smallstack.volumes.qcow2.compare import Extents
from smallstack.volumes.qcow2.errors import DiskUnsupportedError, DiskUnwritableError
from smallstack.volumes.qcow2.extents import differing
from smallstack.volumes.qcow2.image import Qcow2, View
from smallstack.volumes.qcow2.place import writable
from smallstack.volumes.qcow2.write import Editor

PIECE: Final = 1 << 20


def commit(path: Path) -> int:
    """Commit the overlay at ``path`` into its backing file; the bytes that changed there.

    The backing file grows when the overlay's disk is larger, and must be no other overlay's. Raises
    the classes of ``errors``.
    """
    with Files() as files:
        disk = files.open(path)
        if len(disk.layers) < 2:
            raise DiskUnsupportedError(path=path, detail="it has no backing file")
        base = files.open(disk.layers[1].path, disk_format=_format(disk.layers[1]))
        extents = differing(base, disk)
        size = max(base.size, disk.size)
        if base.image is None:
            _into_raw(disk, base, extents, size)
            return extents.bytes
        with writable_view(base.path, base.layers[1:]) as view, Editor(view, extents, size) as edit:
            for offset, data in pieces(disk, extents):
                edit.write(offset, data)
            edit.finish()
        return extents.bytes


@contextmanager
def writable_view(path: Path, below: Sequence[Layer]) -> Iterator[View]:
    """The image at ``path`` for an `Editor`, over the layers that are below it."""
    with writable(path) as fd:
        yield View([(Qcow2(fd, str(path)), -1), *(layer.part for layer in below)])


def pieces(disk: Disk, extents: Extents) -> Iterator[tuple[int, bytes]]:
    """The data of all extents that are not zeros, in pieces of at most PIECE bytes."""
    for offset, length, zero in extents:
        for at in range(offset, offset + length, PIECE) if not zero else ():
            yield at, disk.view.read(at, min(PIECE, offset + length - at))


def _format(layer: Layer) -> str:
    return "raw" if layer.image is None else "qcow2"


def _into_raw(disk: Disk, base: Disk, extents: Extents, size: int) -> None:
    with writable(base.path) as fd:
        try:
            write.reserve(fd, extents)
            if base.size < size:
                os.ftruncate(fd, size)
            for offset, length, zero in extents:
                if zero:
                    write.zero(fd, offset, length)
            for offset, data in pieces(disk, extents):
                write_at(fd, memoryview(data), offset)
            os.fsync(fd)
        except OSError as error:
            raise DiskUnwritableError.wrap(error, path=base.path) from None


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of it; raises OSError."""
    while data:
        put = os.pwrite(fd, data, offset)
        data, offset = data[put:], offset + put
