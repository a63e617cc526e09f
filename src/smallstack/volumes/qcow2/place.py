"""Files that appear whole or not at all, and disks that nobody else may write meanwhile."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smallstack.durable import replace_by
from smallstack.volumes.qcow2.errors import DiskUnreadableError, DiskUnwritableError

_LOCK_FROM: Final = 100
_LOCK_BYTES: Final = 200
"""QEMU locks bytes 100 … 299 of every image it has open (its block/file-posix.c): one of each
permission that it has, one of each that it does not share."""


def write_whole(path: Path, fill: Callable[[int], None]) -> None:
    """Make ``path`` by ``fill(fd)``: under a temporary name, synced, then renamed over it.

    A failure, a full disk or a kill leaves what was at ``path``; the temporary file goes with a
    failure, and the next call removes the one that a kill left. Raises DiskUnwritableError, and
    whatever ``fill`` raises.
    """
    try:
        mode = path.stat().st_mode & 0o7777
    except FileNotFoundError:
        mode = 0o644
    try:
        # Users' own files are beside it, ``path~`` may be one.
        replace_by(path, fill, mode, path.with_name(f".{path.name}.smallstack"))
    except BlockingIOError:
        raise DiskUnwritableError(path=path, detail="somebody else is writing it") from None
    except OSError as error:
        raise DiskUnwritableError.wrap(error, path=path) from None


@contextmanager
def writable(path: Path) -> Iterator[int]:
    """A descriptor to write the image in place; no QEMU has it open, nor can have meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskUnreadableError(path=path, detail=error.strerror or "") from None
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_FROM, _LOCK_BYTES, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        except OSError:
            raise DiskUnwritableError(path=path, detail="somebody else has it open") from None
        yield fd
    finally:
        os.close(fd)
