"""Computed files: regular files whose content each machine gets from a file generator."""

from smallstack.proto.filesystem import COMPUTED, INODE, ComputedFile, FileSystem


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
