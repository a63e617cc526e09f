"""Computed files: regular files whose content each machine gets from a file generator."""

import os
import stat
from collections.abc import Sequence

from smallstack.images.errors import SourceError
from smallstack.proto.filesystem import (
    COMPUTED,
    INODE,
    ComputedFile,
    FileSystem,
    FileSystemBuilder,
)


def computed_files(tree: FileSystem) -> list[ComputedFile]:
    """Path and source of every computed file, in the order of a walk."""
    computed = _computed(tree)
    if not computed:
        return []
    return [
        ComputedFile(
            filename=path.decode(errors="replace"),
            source=tree.inode(index).target.decode(errors="replace"),
        )
        for path, index in tree.walk()
        if index in computed
    ]


def with_computed_files(tree: FileSystem, computed: Sequence[ComputedFile]) -> FileSystem:
    """The tree with regular files of it made computed; their owners and modes stay.

    Raises SourceError for a path that is no regular file with one name.
    """
    sources: dict[int, ComputedFile] = {}
    for file in computed:
        index = tree.lookup(os.fsencode(file.filename))
        if index is None or not stat.S_ISREG(tree.inode(index).mode):
            detail = f"the computed file {file.filename} has to be a regular file in it"
            raise SourceError(path="this tree", detail=detail)
        if sources.setdefault(index, file) is not file:
            detail = f"{file.filename} is computed twice, perhaps under another name"
            raise SourceError(path="this tree", detail=detail)
    if not sources:
        return tree
    top = tree.inode(0)
    builder = FileSystemBuilder(top.mode, top.uid, top.gid, top.mtime_ns, top.xattrs)
    placed = {0: 0}
    directories = {b"": 0}
    for path, index in tree.walk():
        if index == 0:
            continue
        above, _, name = path.rpartition(b"/")
        if index not in placed:
            inode = tree.inode(index)
            source = sources.get(index)
            placed[index] = builder.add(
                mode=inode.mode,
                uid=inode.uid,
                gid=inode.gid,
                size=inode.size,
                hash=inode.hash,
                target=inode.target if source is None else source.source.encode(),
                rdev=inode.rdev,
                mtime_ns=inode.mtime_ns,
                xattrs=inode.xattrs,
                computed=source is not None or bool(inode.flags & COMPUTED),
            )
        builder.link(directories[above], name, placed[index])
        if stat.S_ISDIR(tree.inode(index).mode):
            directories[path] = placed[index]
    return builder.build()


def repeated_computed_file(tree: FileSystem) -> str:
    """The second path of a computed file that has several, which none may; "" if all is well."""
    computed = _computed(tree)
    if not computed:
        return ""
    seen = set()
    for path, index in tree.walk():
        if index in computed:
            if index in seen:
                return path.decode(errors="replace")
            seen.add(index)
    return ""


def _computed(tree: FileSystem) -> frozenset[int]:
    return frozenset(
        index
        for index, record in enumerate(INODE.iter_unpack(tree.inodes))
        if record[14] & COMPUTED
    )
