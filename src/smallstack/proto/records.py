"""A packed tree as a record with an object for each inode, and back: slow, for JSON and tests."""

import stat

from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import (
    COMPUTED,
    ComputedRegularInode,
    DirectoryEntry,
    DirectoryInode,
    FileSystem,
    FileSystemBuilder,
    FileSystemRecord,
    GenericInode,
    Inode,
    RegularInode,
    SpecialInode,
    SymlinkInode,
)
from smallstack.proto.kinds import NANOSECONDS_PER_SECOND, Hash


def text_of(raw: bytes) -> str:
    """A file name as messages hold it: bytes that are no UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def raw_of(text: str) -> bytes:
    """The reverse of :func:`text_of`."""
    return text.encode("utf-8", "surrogateescape")


def to_record(tree: FileSystem) -> FileSystemRecord:
    """The record of a tree."""
    numbers = [tree.inode(index).number for index in range(len(tree))]
    return FileSystemRecord(
        inode_table={numbers[i]: inode_record(tree, i, numbers) for i in range(1, len(tree))},
        num_regular_inodes=tree.num_regular_inodes,
        total_data_bytes=tree.total_data_bytes,
        directory_count=tree.directory_count,
        directory_inode=_directory(tree, 0, numbers),
    )


def inode_record(tree: FileSystem, index: int, numbers: list[int] | None = None) -> GenericInode:
    """The record of one inode; ``numbers`` are those of all inodes, if they are at hand."""
    inode = tree.inode(index)
    xattrs = {text_of(name): value for name, value in inode.xattrs.items()}
    if stat.S_ISDIR(inode.mode):
        return _directory(tree, index, numbers)
    if stat.S_ISLNK(inode.mode):
        return SymlinkInode(
            uid=inode.uid,
            gid=inode.gid,
            symlink=text_of(inode.target),
            mtime_nano_seconds=inode.mtime_nsec,
            mtime_seconds=inode.mtime_sec,
            xattrs=xattrs,
        )
    if inode.flags & COMPUTED:
        return ComputedRegularInode(
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            source=text_of(inode.target),
            xattrs=xattrs,
        )
    if stat.S_ISREG(inode.mode):
        return RegularInode(
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            mtime_nano_seconds=inode.mtime_nsec,
            mtime_seconds=inode.mtime_sec,
            size=inode.size,
            hash=Hash(inode.hash) if inode.hash else Hash.zero,
            xattrs=xattrs,
        )
    return SpecialInode(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_nano_seconds=inode.mtime_nsec,
        mtime_seconds=inode.mtime_sec,
        rdev=inode.rdev,
        xattrs=xattrs,
    )


def _directory(tree: FileSystem, index: int, numbers: list[int] | None) -> DirectoryInode:
    inode: Inode = tree.inode(index)
    return DirectoryInode(
        entry_list=[
            DirectoryEntry(
                name=text_of(name),
                inode_number=numbers[child] if numbers else tree.inode(child).number,
            )
            for name, child in tree.children(index)
        ],
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_nano_seconds=inode.mtime_nsec,
        mtime_seconds=inode.mtime_sec,
        xattrs={text_of(name): value for name, value in inode.xattrs.items()},
    )


def from_record(record: FileSystemRecord) -> FileSystem:
    """The tree of a record; raises TreeError for one that is not a tree.

    Directories and symlinks whose mtime is 0 have none.
    """
    root = record.directory_inode
    builder = FileSystemBuilder(
        _mode(root.mode, stat.S_IFDIR), root.uid, root.gid, _mtime(root), _xattrs(root.xattrs)
    )
    index = {
        number: _add(builder, number, record.inode_table[number])
        for number in sorted(record.inode_table)
    }
    directories = [(0, root)]
    directories += [
        (index[number], inode)
        for number, inode in sorted(record.inode_table.items())
        if isinstance(inode, DirectoryInode)
    ]
    for directory, inode in directories:
        for entry in inode.entry_list:
            if entry.inode_number not in index:
                raise TreeError(
                    what=f"{entry.name!r} leads to inode {entry.inode_number}, which is not there"
                )
            builder.link(directory, raw_of(entry.name), index[entry.inode_number])
    tree = builder.build()
    return FileSystem(
        tree.inodes,
        tree.entries,
        tree.blob,
        num_regular_inodes=record.num_regular_inodes,
        total_data_bytes=record.total_data_bytes,
        directory_count=record.directory_count,
    )


def _mode(mode: int, kind: int) -> int:
    if stat.S_IFMT(mode) not in {0, kind}:
        raise TreeError(what=f"mode {mode:o} does not fit the kind of its inode")
    return mode | kind


def _mtime(inode: DirectoryInode | SymlinkInode) -> int | None:
    return (inode.mtime_seconds * NANOSECONDS_PER_SECOND + inode.mtime_nano_seconds) or None


def _xattrs(xattrs: dict[str, bytes]) -> dict[bytes, bytes]:
    return {raw_of(name): value for name, value in xattrs.items()}


def _add(builder: FileSystemBuilder, number: int, inode: GenericInode) -> int:
    if inode is None:
        raise TreeError(what=f"inode {number} is nothing")
    xattrs = _xattrs(inode.xattrs)
    if isinstance(inode, SymlinkInode):
        return builder.add(
            number=number,
            mode=stat.S_IFLNK | 0o777,
            uid=inode.uid,
            gid=inode.gid,
            target=raw_of(inode.symlink),
            mtime_ns=_mtime(inode),
            xattrs=xattrs,
        )
    if isinstance(inode, DirectoryInode):
        return builder.add(
            number=number,
            mode=_mode(inode.mode, stat.S_IFDIR),
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=_mtime(inode),
            xattrs=xattrs,
        )
    if isinstance(inode, ComputedRegularInode):
        return builder.add(
            number=number,
            mode=_mode(inode.mode, stat.S_IFREG),
            uid=inode.uid,
            gid=inode.gid,
            target=raw_of(inode.source),
            computed=True,
            xattrs=xattrs,
        )
    mtime_ns = inode.mtime_seconds * NANOSECONDS_PER_SECOND + inode.mtime_nano_seconds
    if isinstance(inode, RegularInode):
        return builder.add(
            number=number,
            mode=_mode(inode.mode, stat.S_IFREG),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size,
            hash=inode.hash,
            mtime_ns=mtime_ns,
            xattrs=xattrs,
        )
    if stat.S_IFMT(inode.mode) not in {stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}:
        raise TreeError(what=f"inode {number} has mode {inode.mode:o}, which is no special file")
    return builder.add(
        number=number,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        rdev=inode.rdev,
        mtime_ns=mtime_ns,
        xattrs=xattrs,
    )
