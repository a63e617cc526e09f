"""What the writer tells about a finished root, and names for inodes in messages."""

import struct
import time
from dataclasses import dataclass
from typing import Protocol

_ENTRY = struct.Struct("<III")
_INODE_SIZE = 144
_DIRECTORY = struct.Struct("<II")
_DIRECTORY_AT = 56
_MODE = struct.Struct("<I")
_MODE_AT = 28
_TYPE_MASK = 0o170000
_TYPE_DIRECTORY = 0o040000


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
    """A path of inode ``index`` for a message; ``inode N`` where a broken tree gives none."""
    names: list[bytes] = []
    seen = {index}
    while index != 0:
        found = _entry_of(tree, index)
        if found is None or found[0] in seen:
            return "/".join(["inode", str(index)])
        index, name = found
        seen.add(index)
        names.append(name)
    return "/" + b"/".join(reversed(names)).decode(errors="backslashreplace")


def _entry_of(tree: PackedTree, index: int) -> tuple[int, bytes] | None:
    """The directory that holds an inode, and the name it has there."""
    for position, (inode, offset, length) in enumerate(
        _ENTRY.iter_unpack(tree.entries[: len(tree.entries) // 12 * 12])
    ):
        if inode != index:
            continue
        for directory in range(len(tree.inodes) // _INODE_SIZE):
            at = directory * _INODE_SIZE
            (mode,) = _MODE.unpack_from(tree.inodes, at + _MODE_AT)
            first, count = _DIRECTORY.unpack_from(tree.inodes, at + _DIRECTORY_AT)
            if mode & _TYPE_MASK == _TYPE_DIRECTORY and first <= position < first + count:
                return directory, bytes(tree.blob[offset : offset + length])
    return None


def newest_mtime(tree: PackedTree) -> int:
    """Seconds: the latest mtime in a tree, not in the future: when its file system "was made"."""
    times = memoryview(tree.inodes).cast("q")[2::18]
    return max(0, min(max(times, default=0), int(time.time()), 0xFFFFFFFF))
