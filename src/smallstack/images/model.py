"""What can be told of an image by looking at it: counts, what it lacks, whether it is whole."""

import stat
from dataclasses import dataclass

from blake3 import blake3

from smallstack.images.errors import ImageError
from smallstack.proto.filesystem import COMPUTED, HAS_MTIME, INODE, FileSystem
from smallstack.proto.image import Image

REQUIRED_PATHS = (
    (b"/etc", stat.S_IFDIR),
    (b"/etc/passwd", stat.S_IFREG),
    (b"/usr", stat.S_IFDIR),
    (b"/usr/bin", stat.S_IFDIR),
)
"""What an image that covers a whole machine must have."""


@dataclass(frozen=True)
class Summary:
    """Counts over a tree; ``untimed`` are directories and symlinks without an mtime."""

    directories: int
    files: int
    symlinks: int
    specials: int
    computed: int
    with_xattrs: int
    untimed: int
    data_bytes: int
    objects: int
    object_bytes: int
    usage_estimate: int

    @property
    def notes(self) -> list[str]:
        """A line for everything that the image does not tell."""
        if self.untimed and self.untimed == self.directories + self.symlinks:
            lost = "times of directories and symlinks" + (
                "" if self.with_xattrs else ", and extended attributes if there were any"
            )
            return [f"absent: {lost} (it was made by, or went through, a server that drops them)"]
        if self.untimed:
            return [f"absent: times of {self.untimed} directories and symlinks"]
        if not self.with_xattrs:
            return ["absent: extended attributes (no inode has any)"]
        return []


def summarise(tree: FileSystem) -> Summary:
    """One pass over the inodes."""
    kinds = dict.fromkeys((stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK), 0)
    specials = computed = with_xattrs = untimed = 0
    for record in INODE.iter_unpack(tree.inodes):
        kind, flags = stat.S_IFMT(record[4]), record[14]
        with_xattrs += record[13] > 0
        if flags & COMPUTED:
            computed += 1
        elif kind in kinds:
            kinds[kind] += 1
            untimed += kind != stat.S_IFREG and not flags & HAS_MTIME
        else:
            specials += 1
    objects = tree.objects()
    return Summary(
        directories=kinds[stat.S_IFDIR],
        files=kinds[stat.S_IFREG],
        symlinks=kinds[stat.S_IFLNK],
        specials=specials,
        computed=computed,
        with_xattrs=with_xattrs,
        untimed=untimed,
        data_bytes=tree.total_data_bytes,
        objects=len(objects),
        object_bytes=sum(objects.values()),
        usage_estimate=tree.usage_estimate(),
    )


def tree_digest(tree: FileSystem) -> bytes:
    """BLAKE3 of a tree, 32 bytes: of its tables with their lengths."""
    hasher = blake3()
    for table in (tree.inodes, tree.entries, tree.blob):
        hasher.update(len(table).to_bytes(8, "little"))
        hasher.update(table)
    return hasher.digest()


def object_of_two_sizes(tree: FileSystem) -> bytes | None:
    """The digest of an object that files of different sizes are said to have; None: there is none.

    `FileSystem.objects` tells one of the sizes only.
    """
    sizes = tree.objects()
    for record in INODE.iter_unpack(tree.inodes):
        size, kind, flags, digest = record[1], stat.S_IFMT(record[4]), record[14], record[16]
        if size and kind == stat.S_IFREG and not flags & COMPUTED and sizes[digest] != size:
            return bytes(digest)
    return None


def check_required_paths(name: str, image: Image) -> None:
    """Raises ImageError when an image that is not sparse lacks what every machine needs."""
    if image.filter is None or image.file_system is None:
        return
    for path, kind in REQUIRED_PATHS:
        index = image.file_system.lookup(path)
        if index is None or stat.S_IFMT(image.file_system.inode(index).mode) != kind:
            raise ImageError(
                name=name,
                detail=f"it has a filter, so it covers a whole machine, but {path.decode()} is "
                "not in it: leave the filter out for a sparse image",
            )
