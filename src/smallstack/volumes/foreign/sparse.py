"""A new file that is written front to back, with holes where whole blocks are zeros."""

import os
from pathlib import Path
from typing import Final, Self

BLOCK: Final = 4096
"""Bytes of what becomes a hole or does not."""
_AT_ONCE: Final = 256 * 1024
_ZEROS: Final = bytes(BLOCK)


class SparseFile:
    """``size`` bytes so far. Blocking; one thread at a time. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        """Make ``path``, 0600; it must not exist."""
        self.path = path
        self.size = 0
        self._held = bytearray()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Append ``data``; up to 256 KiB of them stay in memory."""
        self.size += len(data)
        self._held += data
        whole = len(self._held) // _AT_ONCE * _AT_ONCE
        if whole:
            self._put(bytes(memoryview(self._held)[:whole]), self.size - len(self._held))
            del self._held[:whole]

    def finish(self) -> None:
        """Put what is in memory into the file, and give it its size."""
        self._put(bytes(self._held), self.size - len(self._held))
        self._held.clear()
        os.ftruncate(self.fd, self.size)

    def extend(self, size: int) -> None:
        """Zeros up to ``size`` bytes; before anything is written, or after `finish`."""
        self.size = size
        os.ftruncate(self.fd, size)

    def read(self, offset: int, length: int) -> bytes:
        """What is in the file there; fewer bytes at its end."""
        parts = []
        while length and (data := os.pread(self.fd, length, offset)):
            parts.append(data)
            offset += len(data)
            length -= len(data)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Calling it twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _put(self, data: bytes, offset: int) -> None:
        """Write ``data`` at ``offset``, a multiple of BLOCK, but for blocks of zeros."""
        start = -1
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            if block == _ZEROS[: len(block)]:
                if start >= 0:
                    self._write(data[start:at], offset + start)
                    start = -1
            elif start < 0:
                start = at
        if start >= 0:
            self._write(data[start:], offset + start)

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
