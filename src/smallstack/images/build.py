"""Makes a tree of a directory on disk, handing every file's content to a sink.

What goes in: regular files, directories, symlinks, devices and fifos with mode, owner, mtime and
extended attributes (ACLs and capabilities among them); hard links stay hard links. Names are
sorted. Sockets are left out, and so is ``/.subd``; a directory that another file system is mounted
on stays empty. The report counts what was left out.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from smallstack.images.decompress import Readable
from smallstack.images.errors import SourceError
from smallstack.images.filter import PathFilter
from smallstack.objects.store import CHUNK, ObjectStore
from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.telemetry.errors import describe

SKIPPED_AT_THE_TOP: Final = b".subd"
XATTR_PREFIXES: Final = (
    b"user.",
    b"trusted.",
    b"security.",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
)
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES})
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ShortFileError(Exception):
    """A file ended before the size it was said to have."""


class Sink(Protocol):
    """Where contents go."""

    def add(self, file: Readable, size: int) -> bytes:
        """Take ``size`` bytes (at least 1) of the file; their SHA-512.

        Raises ShortFileError when they do not come.
        """


class StoreSink:
    """A store as a sink."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def add(self, file: Readable, size: int) -> bytes:
        """See `Sink`; raises what `Incoming` raises."""
        with self._store.incoming(size) as incoming:
            for chunk in chunks(file, size):
                incoming.write(chunk)
            return incoming.finish().hash


def chunks(file: Readable, size: int) -> Iterator[bytes]:
    """The next ``size`` bytes of a file in pieces; raises ShortFileError."""
    while size:
        chunk = file.read(min(size, CHUNK))
        if not chunk:
            raise ShortFileError
        size -= len(chunk)
        yield chunk


@dataclass
class Report:
    """What a build has done so far; ``advanced`` is called after every file."""

    files: int = 0
    file_bytes: int = 0
    sockets: int = 0
    mounts: list[str] = field(default_factory=list)
    advanced: Callable[["Report"], None] | None = None

    def count(self, size: int) -> None:
        """One more regular file, of ``size`` bytes."""
        self.files += 1
        self.file_bytes += size
        if self.advanced is not None:
            self.advanced(self)

    def warnings(self) -> list[str]:
        """A line for each kind of thing that was left out."""
        lines = []
        if self.sockets:
            lines.append(f"{self.sockets} socket(s) left out: an image cannot hold them")
        if self.mounts:
            shown = ", ".join(self.mounts[:3]) + (", …" if len(self.mounts) > 3 else "")
            lines.append(f"{len(self.mounts)} mounted file system(s) left out: {shown}")
        return lines


def from_directory(
    path: Path | str,
    sink: Sink,
    path_filter: PathFilter | None = None,
    report: Report | None = None,
) -> FileSystem:
    """The tree below ``path``; paths that the filter matches, and all below them, are left out.

    Blocks; belongs into a thread. Raises SourceError, and what the sink raises.
    """
    scan = _Scan(os.fsencode(path), sink, path_filter, report or Report())
    try:
        return scan.run()
    except TreeError as error:
        raise SourceError(path=path, detail=describe(error)) from error


class _Scan:
    """One walk over a directory tree, depth first, without recursion."""

    def __init__(
        self, root: bytes, sink: Sink, path_filter: PathFilter | None, report: Report
    ) -> None:
        self.root = root.rstrip(b"/") or b"/"
        self.sink = sink
        self.filter = path_filter
        self.report = report
        self.links: dict[tuple[int, int], int] = {}
        self.device = 0
        self.builder = FileSystemBuilder()

    def run(self) -> FileSystem:
        with _explained(self.root):
            top = os.stat(self.root)  # noqa: PTH116 - bytes
            if not stat.S_ISDIR(top.st_mode):
                raise SourceError(path=os.fsdecode(self.root), detail="it is no directory")
            self.device = top.st_dev
            self.builder = FileSystemBuilder(
                top.st_mode, top.st_uid, top.st_gid, top.st_mtime_ns, _xattrs(self.root)
            )
            ancestors = [(top.st_dev, top.st_ino)]
            stack = [(b"", 0, iter(self._names(b"")))]
        while stack:
            above, directory, names = stack[-1]
            for name in names:
                path = above + b"/" + name
                if self._left_out(path):
                    continue
                with _explained(self.root + path):
                    below = self._add(path, name, directory)
                    if below is None:
                        continue
                    index, key = below
                    if key in ancestors:  # a bind mount of what is above it
                        where = os.fsdecode(self.root + path)
                        raise SourceError(path=where, detail="it is a directory in itself")
                    ancestors.append(key)
                    stack.append((path, index, iter(self._names(path))))
                    break
            else:
                stack.pop()
                ancestors.pop()
        return self.builder.build()

    def _names(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.root + path or b"/"))  # noqa: PTH208 - bytes

    def _left_out(self, path: bytes) -> bool:
        if path == b"/" + SKIPPED_AT_THE_TOP:
            return True
        return self.filter is not None and self.filter.matches(path)

    def _add(self, path: bytes, name: bytes, directory: int) -> tuple[int, tuple[int, int]] | None:
        """Add one name; for a directory to go into, its index and its device and number."""
        where = self.root + path
        try:
            found = os.lstat(where)
        except FileNotFoundError:
            return None  # it went away since the directory was read
        kind = stat.S_IFMT(found.st_mode)
        key = (found.st_dev, found.st_ino)
        if kind == stat.S_IFSOCK:
            self.report.sockets += 1
            return None
        if kind != stat.S_IFDIR and found.st_nlink > 1 and key in self.links:
            self.builder.link(directory, name, self.links[key])
            return None
        if kind == stat.S_IFREG:
            index = self._add_file(where, found)
        else:
            index = self.builder.add(
                mode=found.st_mode,
                uid=found.st_uid,
                gid=found.st_gid,
                target=os.readlink(where) if kind == stat.S_IFLNK else b"",  # noqa: PTH115
                rdev=found.st_rdev,
                mtime_ns=found.st_mtime_ns,
                xattrs=_xattrs(where),
            )
        self.builder.link(directory, name, index)
        if kind != stat.S_IFDIR:
            if found.st_nlink > 1:
                self.links[key] = index
            return None
        if found.st_dev != self.device:
            self.report.mounts.append(os.fsdecode(path))
            return None
        return index, key

    def _add_file(self, where: bytes, found: os.stat_result) -> int:
        fd = os.open(where, _READ)
        with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            before = os.fstat(fd)
            if not _same(found, before):
                raise _changed(where)
            hash_ = b""
            if before.st_size:
                try:
                    hash_ = self.sink.add(file, before.st_size)
                except ShortFileError:
                    raise _changed(where) from None
                if not _same(before, os.fstat(fd)):
                    raise _changed(where)
            xattrs = _xattrs(fd)
        self.report.count(before.st_size)
        return self.builder.add(
            mode=before.st_mode,
            uid=before.st_uid,
            gid=before.st_gid,
            size=before.st_size,
            hash=hash_,
            mtime_ns=before.st_mtime_ns,
            xattrs=xattrs,
        )


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino, one.st_mode, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_mode,
        other.st_size,
        other.st_mtime_ns,
    )


def _changed(where: bytes) -> SourceError:
    return SourceError(path=os.fsdecode(where), detail="it changed while it was being read")


def _xattrs(where: bytes | int) -> Mapping[bytes, bytes] | None:
    """Extended attributes of a descriptor, or of a path without following a symlink."""
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
        found = {}
        for name in names:
            encoded = os.fsencode(name)
            if encoded.startswith(XATTR_PREFIXES):
                found[encoded] = os.getxattr(where, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return None
        raise
    return found


@contextmanager
def _explained(where: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(path=os.fsdecode(where), detail=error.strerror) from error
