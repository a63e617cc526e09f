"""Files that appear whole or not at all, and disks that nobody else may write meanwhile."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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
    temporary = path.with_name(f".{path.name}.smallstack")
    try:
        mode = path.stat().st_mode & 0o7777
    except FileNotFoundError:
        mode = 0o644
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise DiskUnwritableError.wrap(error, path=path) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        fill(fd)
        os.fsync(fd)
        temporary.rename(path)
    except BlockingIOError:
        raise DiskUnwritableError(path=path, detail="somebody else is writing it") from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskUnwritableError.wrap(error, path=path) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in it last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
