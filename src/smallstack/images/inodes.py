"""Single inodes of a packed tree, as the messages that carry some of them have them."""

from collections import Counter
from collections.abc import Sequence

from smallstack.proto.filesystem import ENTRY, FileSystem, GenericInode
from smallstack.proto.records import inode_record, raw_of

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
        index = tree.lookup(raw_of(path))
        if not index:
            continue
        if count is None:
            count = Counter(inode for inode, _, _ in ENTRY.iter_unpack(tree.entries))
        number = tree.inode(index).number
        numbers[path] = number
        inodes[number] = inode_record(tree, index)
        links[number] = count[index]
    return numbers, inodes, links
