"""What the writer tells about a finished root, and names for inodes in messages."""

import struct
import time
from array import array
from dataclasses import dataclass
from typing import Final, Protocol

LEAST_BYTES: Final = 8 << 20
MOST_BYTES: Final = (2**32 - 1) * 4096
"""Of a file system, and of a file on one: 16 TiB less a block, which ext4 counts in 32 bits."""
_ENTRY = struct.Struct("<III")
_INODE_SIZE = 144
_DIRECTORY = struct.Struct("<II")
_DIRECTORY_AT = 56
_MODE = struct.Struct("<I")
_MODE_AT = 28
_TYPE_MASK = 0o170000
_TYPE_DIRECTORY = 0o040000
_NOWHERE = 0xFFFFFFFF
_LONGEST = 4096  # bytes of a path in a message: PATH_MAX


@dataclass(frozen=True, slots=True)
class Layout:
    """A finished file system: 4 KiB blocks, counts, bytes written and nanoseconds taken."""

    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int
    groups: int
    journal_blocks: int
    written: int
    plan_ns: int
    write_ns: int


class PackedTree(Protocol):
    """The three tables of ``csrc/tree.h``."""

    @property
    def inodes(self) -> bytes:
        """Records of 144 bytes."""

    @property
    def entries(self) -> bytes:
        """Records of 12 bytes."""

    @property
    def blob(self) -> bytes:
        """Names, targets, extended attributes."""


def path_of(tree: PackedTree, index: int) -> str:
    """A path of inode ``index`` for a message; ``inode/N`` where a broken tree gives none.

    The tree is gone through once, however deep it is. Of a path over PATH_MAX only the end is told.
    """
    parents, named = _entries_of(tree)
    entries, blob, number = memoryview(tree.entries), tree.blob, index
    names: list[bytes] = []
    length = 0
    seen: set[int] = set()
    while index != 0:
        if index >= len(parents) or parents[index] == _NOWHERE or index in seen:
            return f"inode/{number}"
        seen.add(index)
        if length <= _LONGEST:
            _, offset, size = _ENTRY.unpack_from(entries, named[index] * _ENTRY.size)
            names.append(bytes(blob[offset : offset + min(size, _LONGEST)]))
            length += len(names[-1]) + 1
        index = parents[index]
    start = "..." if length > _LONGEST else ""
    return f"{start}/" + b"/".join(reversed(names)).decode(errors="backslashreplace")


def _entries_of(tree: PackedTree) -> "tuple[array[int], array[int]]":
    """For each inode the directory that names it first, and the entry's position there.

    Entries that directories share would make this endless: at most all entries are looked at.
    """
    count, left = len(tree.inodes) // _INODE_SIZE, len(tree.entries) // _ENTRY.size
    inodes, entries = memoryview(tree.inodes), memoryview(tree.entries)
    parents = array("I", [_NOWHERE]) * count
    named = array("I", [0]) * count
    total = left
    for directory in range(count):
        at = directory * _INODE_SIZE
        (mode,) = _MODE.unpack_from(inodes, at + _MODE_AT)
        if mode & _TYPE_MASK != _TYPE_DIRECTORY:
            continue
        first, length = _DIRECTORY.unpack_from(inodes, at + _DIRECTORY_AT)
        for position in range(first, min(first + min(length, left), total)):
            (inode, _, _) = _ENTRY.unpack_from(entries, position * _ENTRY.size)
            if inode < count and parents[inode] == _NOWHERE:
                parents[inode], named[inode] = directory, position
        left -= min(length, left)
    return parents, named


def newest_mtime(tree: PackedTree) -> int:
    """Seconds: the latest mtime in a tree, not in the future: when its file system "was made"."""
    times = memoryview(tree.inodes).cast("q")[2::18]
    return max(0, min(max(times, default=0), int(time.time()), 0xFFFFFFFF))
