"""Makes a tree of a tar archive, plain or compressed, handing every file's content to a sink.

A path is where the archive says it is, below the root and nowhere else: absolute names, ``..``, a
parent that is not a directory, a second entry for a path, a hard link to what is not there (yet)
or is a directory are errors. A directory may be stated again, which is how archives give the
metadata of one they have put things into already; one that is never stated is 0755 of root.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from smallstack.images.build import SKIPPED_AT_THE_TOP, XATTR_PREFIXES, Report, Sink
from smallstack.images.decompress import Readable, decompressed
from smallstack.images.errors import TarError
from smallstack.images.filter import PathFilter
from smallstack.images.tar_reader import Member, TarReader, shown
from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.telemetry.errors import describe

MAX_MEMBERS: Final = 1 << 22
"""What the other end of the wire takes in one tree."""
MAX_PATH: Final = 4095
MAX_PATHS: Final = 256 << 20
"""Bytes of all paths that are held at a time, those of directories that nobody stated included."""
_TRAILING: Final = 64 << 20


def from_tar(
    file: BinaryIO,
    sink: Sink,
    path_filter: PathFilter | None = None,
    report: Report | None = None,
) -> FileSystem:
    """The tree in an archive, read from the file's position on.

    Blocks; belongs into a thread. Raises TarError, and what the sink raises.
    """
    return read_tar(decompressed(file), sink, path_filter, report or Report())


def read_tar(
    source: Readable, sink: Sink, path_filter: PathFilter | None, report: Report
) -> FileSystem:
    """The tree in an archive that is not compressed; raises as `from_tar`."""
    reader = TarReader(source)
    tree = _Tree()
    try:
        for number, member in enumerate(reader.members()):
            if number >= MAX_MEMBERS:
                raise TarError(detail=f"it has more than {MAX_MEMBERS} members")
            path = clean_path(member.name)
            if path == b"/" + SKIPPED_AT_THE_TOP or path.startswith(b"/.subd/"):
                continue
            if path != b"/" and path_filter is not None and path_filter.matches(path):
                continue
            tree.check_new(path, member)
            digest = b""
            if member.kind == stat.S_IFREG and member.size:
                digest = sink.add(reader, member.size)
            tree.add(path, member, digest)
            if member.kind == stat.S_IFREG:
                report.count(member.size)
        _drain(source)
        return tree.build()
    except TreeError as error:
        raise TarError(detail=describe(error)) from error


def _drain(source: Readable) -> None:
    """Read what lies behind the end mark, so that a compressed stream's checksum is checked."""
    left = _TRAILING
    while left > 0 and (data := source.read(1 << 18)):
        left -= len(data)


def clean_path(name: bytes) -> bytes:
    """``/`` and the components of a member's name; raises TarError for one that leads elsewhere."""
    if name.startswith(b"/"):
        raise TarError(detail=f"it has the absolute name {shown(name)}: archive relative names")
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    for part in parts:
        if part == b"..":
            raise TarError(detail=f"it has the name {shown(name)}, which leads out of it")
        if len(part) > 255:
            raise TarError(detail=f"it has a name of {len(part)} bytes: {shown(part)}")
    if not name:
        raise TarError(detail="it has a member without a name")
    if len(name) > MAX_PATH:
        raise TarError(detail=f"it has a path of {len(name)} bytes: {shown(name)}")
    return b"/" + b"/".join(parts)


class PathBudget:
    """Bounds the paths that are held: an archive of a few KiB can name very many deep ones."""

    def __init__(self) -> None:
        self._left = MAX_PATHS

    def spend(self, path: bytes) -> None:
        """One path more is held; raises TarError."""
        self._left -= len(path)
        if self._left < 0:
            raise TarError(detail=f"its paths take more than {MAX_PATHS >> 20} MiB")


class _Tree:
    """The tree as far as it is known; paths are absolute."""

    def __init__(self) -> None:
        self.builder = FileSystemBuilder(mtime_ns=None)
        self.directories: dict[bytes, int] = {b"/": 0}
        self.others: dict[bytes, int] = {}
        self._budget = PathBudget()

    def check_new(self, path: bytes, member: Member) -> None:
        """Raises TarError unless a member may stand at this path."""
        if path in self.others:
            raise TarError(detail=f"it has {shown(member.name)} twice")
        if path in self.directories and member.kind != stat.S_IFDIR:
            raise TarError(detail=f"it has {shown(member.name)} twice, once as a directory")
        self.directory(os.path.dirname(path))  # noqa: PTH120 - bytes

    def directory(self, path: bytes) -> int:
        """The inode of a directory, made if it is not there; raises TarError."""
        missing = []
        while (index := self.directories.get(path)) is None:
            if path in self.others:
                raise TarError(
                    detail=f"it has something below {shown(path[1:])}, which is no directory"
                )
            missing.append(path)
            path = os.path.dirname(path)  # noqa: PTH120 - bytes
        for path in reversed(missing):
            self._budget.spend(path)
            index = self.directories[path] = self.builder.add(mode=0o40755)
        return index

    def add(self, path: bytes, member: Member, digest: bytes) -> None:
        """Add a member; raises TarError or TreeError."""
        xattrs = {k: v for k, v in member.xattrs.items() if k.startswith(XATTR_PREFIXES)}
        if member.kind == stat.S_IFDIR:
            self.builder.restate_directory(
                self.directory(path),
                mode=member.mode | stat.S_IFDIR,
                uid=member.uid,
                gid=member.gid,
                mtime_ns=member.mtime_ns,
                xattrs=xattrs,
            )
            return
        self._budget.spend(path)
        if member.kind == 0:
            self.others[path] = self.hard_link(member)
            return
        self.others[path] = self.builder.add(
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

    def hard_link(self, member: Member) -> int:
        """The inode that a hard link leads to; raises TarError."""
        target = clean_path(member.target)
        if target in self.directories:
            what = f"{shown(member.name)} is a hard link to the directory {shown(member.target)}"
            raise TarError(detail=what)
        if target not in self.others:
            what = f"{shown(member.name)} is a hard link to {shown(member.target)}"
            raise TarError(detail=f"{what}, which does not stand before it")
        return self.others[target]

    def build(self) -> FileSystem:
        """The packed tree, every directory sorted by name."""
        for path, index in sorted({**self.directories, **self.others}.items()):
            if path != b"/":
                above, _, name = path.rpartition(b"/")
                self.builder.link(self.directories[above or b"/"], name, index)
        return self.builder.build()


def open_tar(path: Path) -> BinaryIO:
    """The archive at ``path``, or standard input for ``-``; raises OSError."""
    import sys

    return sys.stdin.buffer if str(path) == "-" else path.open("rb")
