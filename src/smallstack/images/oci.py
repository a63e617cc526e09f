"""Makes a tree of a container image, handing every file's content to a sink.

Two passes over the layers. The first reads headers and digests and tells what the layers come to
(`oci_layers`); the second hands on the contents that are left, so that what a later layer hides
never travels. Both check every byte. The same image gives the same tree, bit for bit.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final

from smallstack.images.build import XATTR_PREFIXES, Report, Sink
from smallstack.images.errors import OciError, TarError
from smallstack.images.filter import PathFilter
from smallstack.images.oci_layers import Directory, Stack, inode_of, place
from smallstack.images.oci_layout import MAX_UNPACKED, ContainerImage, Limited
from smallstack.images.tar_reader import Member, TarReader
from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.telemetry.errors import describe

MAX_KEPT: Final = 1 << 20
"""Bytes of a file that is to be looked into."""


@dataclass(frozen=True)
class Addition:
    """An inode that is of no layer: a symlink's target, a file's object or its content."""

    mode: int
    target: bytes = b""
    size: int = 0
    hash: bytes = b""
    mtime_ns: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def from_container(
    image: ContainerImage,
    sink: Sink,
    path_filter: PathFilter | None = None,
    report: Report | None = None,
    most: int = MAX_UNPACKED,
) -> FileSystem:
    """The tree of an image whose layers unpack to ``most`` bytes at most.

    Blocks; belongs into a thread. Raises OciError, and what the sink raises.
    """
    build = ContainerBuild(image, sink, report or Report(), most)
    build.read_contents(path_filter)
    return build.finish()


class ContainerBuild:
    """A tree in the making: layers stacked; then contents; then what is added; then packed."""

    def __init__(
        self, image: ContainerImage, sink: Sink, report: Report, most: int = MAX_UNPACKED
    ) -> None:
        """Stacks the layers. Raises OciError."""
        self.kept: dict[bytes, bytes] = {}
        self._image = image
        self._sink = sink
        self._report = report
        self._most = most
        self._builder = FileSystemBuilder(mtime_ns=None)
        self._indexes: dict[int, int] = {}
        self._added = 0
        self.stack = Stack()
        limit = Limited(most)
        for number in range(len(image.layers)):
            with self._layer(number, limit) as reader:
                self.stack.add(reader.members())

    def read_contents(
        self, path_filter: PathFilter | None = None, keep: tuple[bytes, ...] = ()
    ) -> None:
        """Hand contents to the sink; those of the paths in ``keep`` are in ``kept`` afterwards.

        Raises OciError, and what the sink raises.
        """
        if path_filter is not None:
            _prune(self.stack.root, path_filter)
        keeping = {found: path for path in keep if isinstance(found := self.stack.find(path), int)}
        wanted: list[set[int]] = [set() for _ in self._image.layers]
        for inode in _inodes(self.stack.root):
            layer, ordinal = place(inode)
            wanted[layer].add(ordinal)
        limit = Limited(self._most)
        for number, ordinals in enumerate(wanted):
            if not ordinals:
                continue
            with self._layer(number, limit) as reader:
                for ordinal, member in enumerate(reader.members()):
                    if ordinal in ordinals:
                        inode = inode_of(number, ordinal)
                        self._add(inode, reader, member, keeping.get(inode))

    def add(self, path: bytes, addition: Addition) -> None:
        """Put something at a path where nothing is; its directory is there. Raises OciError."""
        above, _, name = path.rpartition(b"/")
        directory = self.stack.find(above)
        if not isinstance(directory, Directory) or name in directory.children:
            raise OciError(detail=f"there is no place for {os.fsdecode(path)} in it")
        self._added -= 1
        with _explained():
            self._indexes[self._added] = self._builder.add(
                mode=addition.mode,
                size=addition.size,
                hash=addition.hash,
                target=addition.target,
                mtime_ns=addition.mtime_ns,
                xattrs=addition.xattrs,
            )
        is_directory = stat.S_ISDIR(addition.mode)
        directory.children[name] = Directory(self._added) if is_directory else self._added

    def add_file(self, path: bytes, content: bytes, mode: int) -> None:
        """Put a file of this content (not empty) at a path; raises as `add` and the sink do."""
        digest = self._sink.add(BytesIO(content), len(content))
        self.add(path, Addition(mode=stat.S_IFREG | mode, size=len(content), hash=digest))

    def finish(self) -> FileSystem:
        """The packed tree, every directory sorted by name. Raises OciError."""
        with _explained():
            stack = [(0, self.stack.root)]
            while stack:
                index, directory = stack.pop()
                for name, child in sorted(directory.children.items(), key=lambda item: item[0]):
                    below = self._index(child)
                    self._builder.link(index, name, below)
                    if isinstance(child, Directory):
                        stack.append((below, child))
            return self._builder.build()

    def _index(self, child: int | Directory) -> int:
        if not isinstance(child, Directory):
            return self._indexes[child]
        if child.inode is None:
            return self._builder.add(mode=0o40755)
        return self._indexes[child.inode]

    @contextmanager
    def _layer(self, number: int, limit: Limited) -> Iterator[TarReader]:
        """A layer's members; what is wrong with it is told with its number."""
        try:
            with self._image.layer(number, limit) as source:
                yield TarReader(source)
        except TarError as error:
            raise OciError(detail=f"layer {number + 1}: {error.detail}") from error
        except TreeError as error:
            raise OciError(detail=f"layer {number + 1}: {describe(error)}") from error

    def _add(self, inode: int, reader: TarReader, member: Member, keep: bytes | None) -> None:
        xattrs = {k: v for k, v in member.xattrs.items() if k.startswith(XATTR_PREFIXES)}
        if inode == self.stack.root.inode:
            self._builder.restate_directory(
                0,
                mode=member.mode | member.kind,
                uid=member.uid,
                gid=member.gid,
                mtime_ns=member.mtime_ns,
                xattrs=xattrs,
            )
            return
        digest = b""
        if member.kind == stat.S_IFREG:
            if member.size and keep is not None and member.size <= MAX_KEPT:
                data = b""
                while more := reader.read():
                    data += more
                self.kept[keep] = data
                digest = self._sink.add(BytesIO(data), member.size)
            elif member.size:
                digest = self._sink.add(reader, member.size)
            self._report.count(member.size)
        self._indexes[inode] = self._builder.add(
            mode=member.mode | member.kind,
            uid=member.uid,
            gid=member.gid,
            size=member.size,
            hash=digest,
            target=member.target if member.kind == stat.S_IFLNK else b"",
            rdev=os.makedev(member.major, member.minor),
            mtime_ns=member.mtime_ns,
            xattrs=xattrs,
        )


def _inodes(root: Directory) -> Iterator[int]:
    """Every inode that has a name; one with several comes as often."""
    stack = [root]
    while stack:
        directory = stack.pop()
        if directory.inode is not None:
            yield directory.inode
        for child in directory.children.values():
            if isinstance(child, Directory):
                stack.append(child)
            else:
                yield child


def _prune(root: Directory, path_filter: PathFilter) -> None:
    stack = [(b"", root)]
    while stack:
        above, directory = stack.pop()
        for name in list(directory.children):
            path = above + b"/" + name
            if path_filter.matches(path):
                del directory.children[name]
            elif isinstance(below := directory.children[name], Directory):
                stack.append((path, below))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except TreeError as error:
        raise OciError(detail=describe(error)) from error
