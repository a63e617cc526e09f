"""Parts of files that take no room on disk: they read as zeros."""

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final

SIZE: Final = 64 << 10
"""Bytes: shorter runs of zeros, and what is not at a multiple of it, are data like any other."""
_PUNCH: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE"""
_ZEROS: Final = bytes(SIZE)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back what bytes of a file take on disk. Raises OSError."""
    while _libc.fallocate(fd, _PUNCH, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def runs(data: memoryview, offset: int) -> Iterator[tuple[bool, int]]:
    """What can be a hole, and what cannot, in bytes that begin at byte ``offset`` of a file.

    Whether a run is one, and how many bytes it has; the two take turns.
    """
    at = start = 0
    hole = False
    while at < len(data):
        length = min(SIZE - (offset + at) % SIZE, len(data) - at)
        zeros = length == SIZE and data[at] == 0 and bytes(data[at : at + SIZE]) == _ZEROS
        if zeros != hole:
            if at > start:
                yield hole, at - start
            hole, start = zeros, at
        at += length
    if at > start:
        yield hole, at - start


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
