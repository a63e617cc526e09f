"""Modification times of an older image, for what has not changed since."""

import stat

from smallstack.images.diff import Kind, differences
from smallstack.proto.filesystem import HAS_MTIME, INODE, FileSystem


def with_mtimes_of(old: FileSystem, new: FileSystem) -> FileSystem:
    """``new`` with the times of ``old`` at every path where only the time is another.

    A directory is such a path when it holds the same names in both. Times that ``old`` does not
    tell are left.
    """
    changes = {
        change.path: change.old
        for change in differences(old, new)
        if change.kind is Kind.CHANGED and change.what == ("mtime",)
    }
    if not changes:
        return new
    before = dict(old.walk())
    inodes = bytearray(new.inodes)
    for path, index in new.walk():
        found = changes.get(path)
        if (
            found is None
            or found.mtime_ns is None
            or not _same_names(old, before[path], new, index)
        ):
            continue
        record = list(INODE.unpack_from(inodes, index * INODE.size))
        record[2:4] = found.mtime_sec, found.mtime_nsec
        if stat.S_ISDIR(found.mode) or stat.S_ISLNK(found.mode):
            record[14] |= HAS_MTIME
        INODE.pack_into(inodes, index * INODE.size, *record)
    return FileSystem(
        bytes(inodes),
        new.entries,
        new.blob,
        num_regular_inodes=new.num_regular_inodes,
        total_data_bytes=new.total_data_bytes,
        directory_count=new.directory_count,
    )


def _same_names(old: FileSystem, before: int, new: FileSystem, after: int) -> bool:
    """Always so for what is no directory: it has no names."""
    names = {name for name, _ in old.children(before)}
    return names == {name for name, _ in new.children(after)}
