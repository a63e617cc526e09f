"""Files that hold many small objects each, and what is alive in them.

::

    <directory>/.packs/<number>    objects, each at a multiple of `ALIGN` bytes, zeros between them

A file for every small object costs more than its bytes do: 17,000 of them take a second to make.
A pack is written by one `PackWriter`, once, from its start on, and by no later run; where an object
lies in it stands in the index, so what the index does not name is room to be given back. An object
that goes leaves a hole, a pack without any goes itself. Every method blocks; any thread may call.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from typing_extensions import Buffer

from smallstack.objects import pack
from smallstack.objects.holes import punch_hole
from smallstack.objects.store import Stored

PACKS: Final = ".packs"
ALIGN: Final = 4096
PACK_BYTES: Final = 256 << 20
"""A pack that has as many takes no more."""

Part = tuple[bytes, Buffer, int, int]
"""An object in a buffer: its digest, the buffer, where it begins, how many bytes it has."""


class Spot(NamedTuple):
    """Where an object lies: the number of the pack, the first byte, how many bytes it has."""

    pack: int
    offset: int
    size: int


class Packs:
    """The packs of one directory, which no other process uses. Raises OSError."""

    def __init__(self, directory: Path, alive: Iterable[int]) -> None:
        """``alive``: for each object that the index names in a pack, the pack's number."""
        self._root = f"{os.fspath(directory)}/{PACKS}"
        self._lock = threading.Lock()
        self._alive = Counter(alive)
        self._written: set[int] = set()
        os.makedirs(self._root, exist_ok=True)  # noqa: PTH103 - a text
        self._old = frozenset(int(name) for name in os.listdir(self._root) if name.isdecimal())  # noqa: PTH208
        self._next = max(*self._old, *self._alive, 0, 0) + 1
        self.usable = self._can_punch()
        """Whether the file system gives back the room of an object that goes."""

    def path(self, number: int) -> str:
        """The file of a pack."""
        return f"{self._root}/{number}"

    def size(self, number: int) -> int:
        """Bytes of a pack's file, 0 when it is gone."""
        try:
            return os.stat(self.path(number)).st_size  # noqa: PTH116 - the hot path
        except FileNotFoundError:
            return 0

    def start(self) -> tuple[int, int]:
        """Begin a new pack: its number and a descriptor. `finish` has to follow."""
        with self._lock:
            number = self._next
            self._next += 1
            self._written.add(number)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return number, os.open(self.path(number), flags, 0o600)
        except BaseException:
            self.finish(number)
            raise

    def finish(self, number: int) -> None:
        """Nothing more is written to a pack; one with no object alive goes."""
        with self._lock:
            self._written.discard(number)
            self._drop_empty(number)

    def add(self, number: int, count: int) -> None:
        """So many objects more lie in a pack."""
        with self._lock:
            self._alive[number] += count

    def remove(self, spots: Iterable[Spot]) -> None:
        """Give back the room of objects that the index does not name any more."""
        by_pack: dict[int, list[Spot]] = {}
        for spot in spots:
            by_pack.setdefault(spot.pack, []).append(spot)
        for number, gone in by_pack.items():
            with self._lock:
                self._alive[number] -= len(gone)
                if self._drop_empty(number):
                    continue
            self.punch(number, _merge((s.offset, s.size) for s in gone))

    def reclaim(self, alive: Iterable[Spot]) -> None:
        """Give back what a kill has left in packs of earlier runs: all but what is ``alive``."""
        by_pack: dict[int, list[Spot]] = {number: [] for number in self._old}
        for spot in alive:
            if spot.pack in by_pack:
                by_pack[spot.pack].append(spot)
        for number, spots in by_pack.items():
            with self._lock:
                self._drop_empty(number)
            gaps = []
            at = 0
            for start, length in _merge((s.offset, s.size) for s in spots):
                if start > at:
                    gaps.append((at, start - at))
                at = start + length
            self.punch(number, gaps)
            if spots:
                with suppress(FileNotFoundError):  # blocks may be allocated behind the end
                    os.truncate(self.path(number), min(at, self.size(number)))

    def _drop_empty(self, number: int) -> bool:
        """Remove a pack in which nothing lives or will; the lock is held."""
        if self._alive[number] > 0 or number in self._written:
            return False
        del self._alive[number]
        with suppress(FileNotFoundError):
            os.unlink(self.path(number))  # noqa: PTH108 - a text
        return True

    def punch(self, number: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Give back bytes (where they begin, how many) of a pack that nothing names."""
        if not ranges:
            return
        try:
            fd = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            for offset, length in ranges:
                punch_hole(fd, offset, length)
        finally:
            os.close(fd)

    def _can_punch(self) -> bool:
        path = f"{self._root}/probe~"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            punch_hole(fd, 0, ALIGN)
        except OSError:
            return False
        finally:
            os.close(fd)
            os.unlink(path)  # noqa: PTH108 - a text
        return True


class PackWriter:
    """Puts objects into packs one after the other; one thread at a time uses it."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._number = 0
        self._fd = -1
        self._end = 0

    def enter(self, parts: list[Part]) -> "Entered":
        """Check objects and write those before the first wrong one. Raises OSError."""
        _, needed = pack.total(parts)
        if self._fd < 0 or (self._end and self._end + needed > PACK_BYTES):
            self.close()
            self._number, self._fd = self._packs.start()
            self._end = 0
        right, stored, end, error = pack.enter(self._fd, self._end, parts, self._number, Stored)
        if error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)  # what was allocated behind the end goes too
            raise OSError(-error, os.strerror(-error))
        self._end = end
        if right < len(parts):  # something may have been written behind the wrong one
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)
        self._packs.add(self._number, right)
        return Entered(right, stored)

    def take_back(self, stored: Iterable[Stored]) -> None:
        """Forget objects that were entered and are not named by the index."""
        self._packs.remove(Spot(one.pack, one.offset, one.size) for one in stored)

    def close(self) -> None:
        """End the pack that is being written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._packs.finish(self._number)


class Entered(NamedTuple):
    """What one `PackWriter.enter` did."""

    right: int
    """The number of the first object with another SHA-512, or how many there are."""
    stored: list[Stored]
    """Those before it."""


def padded(size: int) -> int:
    """Bytes that an object takes in a pack."""
    return (size + ALIGN - 1) // ALIGN * ALIGN


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Byte and size of runs of objects, of what they take in the pack, in order."""
    merged: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + padded(size))
        else:
            merged.append((offset, padded(size)))
    return merged
