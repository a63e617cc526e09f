"""Single inodes of a packed tree, as the messages that carry some of them have them."""

import stat
from collections import Counter
from collections.abc import Sequence

from smallstack.proto.filesystem import (
    COMPUTED,
    ENTRY,
    ComputedRegularInode,
    DirectoryEntry,
    DirectoryInode,
    FileSystem,
    GenericInode,
    RegularInode,
    SpecialInode,
    SymlinkInode,
)
from smallstack.proto.kinds import Hash

Found = tuple[dict[str, int], dict[int, GenericInode], dict[int, int]]


def find_inodes(tree: FileSystem, paths: Sequence[str]) -> Found:
    """Numbers by path, inodes by number, links by number, of the paths that are there.

    The root directory has no number, so it is never found.
    """
    numbers: dict[str, int] = {}
    inodes: dict[int, GenericInode] = {}
    links: dict[int, int] = {}
    count: Counter[int] | None = None
    for path in paths:
        index = tree.lookup(path.encode(errors="surrogateescape"))
        if not index:
            continue
        if count is None:
            count = Counter(inode for inode, _, _ in ENTRY.iter_unpack(tree.entries))
        number = tree.inode(index).number
        numbers[path] = number
        inodes[number] = inode_message(tree, index)
        links[number] = count[index]
    return numbers, inodes, links


def inode_message(tree: FileSystem, index: int) -> GenericInode:
    """One inode as a message."""
    inode = tree.inode(index)
    xattrs = {name.decode(errors="surrogateescape"): value for name, value in inode.xattrs.items()}
    if inode.flags & COMPUTED:
        return ComputedRegularInode(
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            source=inode.target.decode(errors="replace"),
            xattrs=xattrs,
        )
    if stat.S_ISREG(inode.mode):
        return RegularInode(
            mode=inode.mode,
            size=inode.size,
            hash=Hash(inode.hash) if inode.hash else Hash.zero,
            xattrs=xattrs,
            uid=inode.uid,
            gid=inode.gid,
            mtime_seconds=inode.mtime_sec,
            mtime_nano_seconds=inode.mtime_nsec,
        )
    if stat.S_ISDIR(inode.mode):
        entries = [
            DirectoryEntry(
                name=name.decode(errors="surrogateescape"), inode_number=tree.inode(child).number
            )
            for name, child in tree.children(index)
        ]
        return DirectoryInode(
            entry_list=entries,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            mtime_seconds=inode.mtime_sec,
            mtime_nano_seconds=inode.mtime_nsec,
            xattrs=xattrs,
        )
    if stat.S_ISLNK(inode.mode):
        return SymlinkInode(
            symlink=inode.target.decode(errors="surrogateescape"),
            uid=inode.uid,
            gid=inode.gid,
            mtime_seconds=inode.mtime_sec,
            mtime_nano_seconds=inode.mtime_nsec,
            xattrs=xattrs,
        )
    return SpecialInode(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_seconds=inode.mtime_sec,
        mtime_nano_seconds=inode.mtime_nsec,
        rdev=inode.rdev,
        xattrs=xattrs,
    )
