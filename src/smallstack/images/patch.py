"""Brings a directory to an image by what differs alone.

::

    the directory, scanned ──► differences ──► new inodes, made aside ──► renamed into place
                                          └──► what is not in the image, removed

Whatever a path names is whole at every moment: what has other content, another type or other links
is made anew in a directory of our own at the top and renamed over it; what has other metadata
alone gets that where it is. Directories get theirs last. A kill at any point leaves a tree that
the next run finishes, with what was fetched already; a run that finds nothing changes nothing.

A sparse image (without a filter) has nothing removed. What the filter of another one matches is
left alone, whatever the image says. Every step is taken by a descriptor of the directory that a
path lies in, reached from the top without following a symlink: nobody who changes the tree
meanwhile leads it elsewhere.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from smallstack.images.build import SKIPPED_AT_THE_TOP, XATTR_PREFIXES, chunks, from_directory
from smallstack.images.decompress import Readable
from smallstack.images.diff import Change, Kind, differences
from smallstack.images.errors import PatchError
from smallstack.images.filter import PathFilter
from smallstack.images.unpack import InodeMaker, Unpacked
from smallstack.objects.errors import ObjectCorruptError, StoreBusyError
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import FileSystem, Inode
from smallstack.proto.image import Image
from smallstack.proto.kinds import Hash
from smallstack.telemetry.errors import describe

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PATCH: Final = b"patch"
_METADATA: Final = frozenset({"mode", "owner", "mtime", "xattrs"})


@dataclass
class Patched(Unpacked):
    """What was done, and what could not be as it is in the image."""

    made: int = 0
    removed: int = 0
    settled: int = 0
    """Inodes that got other metadata alone."""
    kept: list[str] = field(default_factory=list)
    """Directories that are not in the image, but have something in them that is left alone."""


class _Digests:
    """A sink that keeps nothing."""

    def add(self, file: Readable, size: int) -> bytes:
        """See `Sink`."""
        digest = hashlib.sha512()
        for chunk in chunks(file, size):
            digest.update(chunk)
        return digest.digest()


class Patch:
    """One patch of ``directory`` to ``image``: look at `changes`, `begin`, fill `store`, `apply`.

    A context manager. Blocks, to be made and used in threads. Raises PatchError when there is no
    such directory; SourceError, FilterError.
    """

    def __init__(self, image: Image, directory: Path) -> None:
        tree = image.file_system
        if tree is None or not directory.is_dir():
            raise PatchError(path=directory, detail="it is no directory")
        self._tree = tree
        self._directory = directory
        self._sparse = image.filter is None
        self._filter = PathFilter(image.filter.filter_lines if image.filter else ())
        matches = None if self._sparse else self._filter
        self._old = from_directory(directory, _Digests(), matches)
        self.changes = [change for change in self._differences() if change is not None]
        """What is to be done, in the order of a walk."""
        self._store: ObjectStore | None = None
        self._open: list[int] = []
        try:
            self._root = os.open(directory, _DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as error:
            raise PatchError(path=directory, detail=describe(error)) from error
        self._open.append(self._root)

    @property
    def store(self) -> ObjectStore:
        """Every object that `begin` has told has to be put in here before `apply`."""
        assert self._store is not None
        return self._store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What was fetched stays for the next run if this one has failed."""
        if self._store is not None:
            self._store.close()
            if error is None:
                shutil.rmtree(_PATCH, dir_fd=self._open[1])
                with suppress(OSError):  # somebody else's things are in it
                    os.rmdir(SKIPPED_AT_THE_TOP, dir_fd=self._root)
                if (mtime := self._tree.inode(0).mtime_ns) is not None:
                    os.utime(self._root, ns=(mtime, mtime))
        for fd in reversed(self._open):
            os.close(fd)

    @property
    def is_done(self) -> bool:
        """Nothing is to be done, and nothing is left of a run that was killed at its end."""
        try:
            with _parent(self._root, b"/" + SKIPPED_AT_THE_TOP + b"/" + _PATCH) as (parent, name):
                os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return not self.changes
        return False

    def begin(self) -> dict[bytes, int]:
        """The objects to be fetched; those that the directory has are put into the store.

        Raises PatchError, also when another patch of the directory is going on.
        """
        for name in (SKIPPED_AT_THE_TOP, _PATCH):
            self._enter(name)
        # By its descriptor: whatever becomes of the names, it is this directory.
        self._work = Path(f"/proc/self/fd/{self._open[-1]}")
        try:
            self._store = ObjectStore(self._work / "objects")
        except StoreBusyError:
            raise PatchError(
                path=self._directory, detail="another patch of it is going on: wait for its end"
            ) from None
        wanted = {c.new.hash: c.new.size for c in self.changes if _is_made(c) and c.new}
        wanted.pop(b"", None)
        here = {
            inode.hash: path
            for path, index in self._old.walk()
            if (inode := self._old.inode(index)).hash in wanted
        }
        return {h: size for h, size in wanted.items() if not self._has(h, size, here.get(h))}

    def _enter(self, name: bytes) -> None:
        """Open our own directory below the last one that was opened, made if it is missing."""
        above = self._open[-1]
        try:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
            fd = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            detail = describe(error)
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                shown = os.fsdecode(name)
                detail = f"its {shown} is no directory and is in the way: move it away"
            raise PatchError(path=self._directory, detail=detail) from error
        self._open.append(fd)
        if os.fstat(fd).st_uid != os.geteuid():
            detail = f"{os.fsdecode(name)} in it is another user's: move it away"
            raise PatchError(path=self._directory, detail=detail)

    def apply(self) -> Patched:
        """Do it. Raises PatchError."""
        report = Patched()
        try:
            _Application(self._root, self._tree, self.changes, self.store, self._work, report).run()
        except OSError as error:
            raise PatchError(path=self._directory, detail=_described(error)) from error
        return report

    def _differences(self) -> Iterator[Change | None]:
        for change in differences(self._old, self._tree):
            if change.kind is Kind.REMOVED:
                yield None if self._sparse else change
            elif not self._sparse and self._filter.matches(change.path):
                yield None
            elif change.what == ("mtime",) and change.new and change.new.mtime_ns is None:
                yield None  # an image that does not tell it has no say
            else:
                yield change

    def _has(self, hash_: bytes, size: int, path: bytes | None) -> bool:
        """Whether an object is in the store: from an earlier run, or of a file that has it."""
        try:
            if self.store.size(hash_) == size:
                self.store.verify(hash_)
                return True
        except ObjectCorruptError:
            self.store.delete(hash_)
        if path is None:
            return False
        try:
            with _parent(self._root, path) as (parent, name):
                fd = os.open(name, _FILE, dir_fd=parent)
            with os.fdopen(fd, "rb") as file:
                self.store.put(file, Hash(hash_))
        except (OSError, ObjectCorruptError):
            return False  # it is another one by now
        return True


class _Application:
    def __init__(
        self,
        root: int,
        tree: FileSystem,
        changes: list[Change],
        store: ObjectStore,
        work: Path,
        report: Patched,
    ) -> None:
        self._root = root
        self._tree = tree
        self._changes = changes
        self._report = report
        self._aside = os.fsencode(work / "new")
        made = {c.new.number: c.new.hash for c in changes if c.new and _is_made(c)}
        uses = Counter(made.values())
        self._maker = InodeMaker(store, uses, report)
        self._first: dict[int, bytes] = {}
        """Where an inode that was made lies, by its number."""
        self._touched: set[bytes] = set()
        self._removed = {c.path: c for c in changes if c.kind is Kind.REMOVED}

    def run(self) -> None:
        """New inodes and metadata, then what goes, then directories, the deepest first."""
        for change in self._changes:
            if change.kind is Kind.REMOVED:
                continue
            assert change.new is not None
            if stat.S_ISDIR(change.new.mode):
                self._make_directory(change)
                self._touched.add(change.path)
            elif _is_made(change):
                self._make(change.path, change.new, change)
            else:
                self._settle(change.path, change.new)
                self._report.settled += 1
        for path in sorted(self._removed, reverse=True):
            self._remove(path)
        for path in sorted(self._touched, reverse=True):
            index = self._tree.lookup(path)
            if index is not None and stat.S_ISDIR(self._tree.inode(index).mode):
                self._settle(path, self._tree.inode(index))

    def _make_directory(self, change: Change) -> None:
        if change.old is not None and stat.S_ISDIR(change.old.mode):
            return
        with self._changing(change.path) as (parent, name):
            if change.old is not None:
                os.unlink(name, dir_fd=parent)
            with suppress(FileExistsError):  # a run that was killed made it
                os.mkdir(name, 0o700, dir_fd=parent)
                self._report.made += 1

    def _make(self, path: bytes, inode: Inode, change: Change) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._aside)  # noqa: PTH108 - bytes
        first = self._first.get(inode.number)
        if first is not None:
            with _parent(self._root, first) as (parent, name):
                os.link(name, self._aside, src_dir_fd=parent, follow_symlinks=False)
        elif not self._maker.make(self._aside, inode):
            return
        else:
            self._maker.settle(self._aside, inode)
        if change.old is not None and stat.S_ISDIR(change.old.mode):
            self._clear(path)
        with self._changing(path) as (parent, name):
            os.rename(self._aside, name, dst_dir_fd=parent)
        self._first.setdefault(inode.number, path)
        self._report.made += 1

    def _clear(self, path: bytes) -> None:
        """Remove a directory that something else is to take the place of."""
        for below in sorted(self._removed, reverse=True):
            if below.startswith(path + b"/"):
                self._remove(below)
                del self._removed[below]
        with self._changing(path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def _remove(self, path: bytes) -> None:
        change = self._removed[path]
        assert change.old is not None
        try:
            with self._changing(path) as (parent, name):
                if stat.S_ISDIR(change.old.mode):
                    os.rmdir(name, dir_fd=parent)
                else:
                    os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EBUSY}:
                raise
            self._report.kept.append(os.fsdecode(path))
            return
        self._report.removed += 1

    def _settle(self, path: bytes, inode: Inode) -> None:
        """Give a file or directory its metadata where it is."""
        with _parent(self._root, path) as (parent, name):
            fd = os.open(name or b".", _FILE, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(inode.mode):
                raise OSError(errno.EBUSY, "it was replaced meanwhile", path)
            for attribute in map(os.fsencode, os.listxattr(fd)):
                if attribute.startswith(XATTR_PREFIXES) and attribute not in inode.xattrs:
                    os.removexattr(fd, attribute)
            self._maker.settle(fd, inode)
        finally:
            os.close(fd)

    @contextmanager
    def _changing(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """`_parent`, whose time will be set again."""
        with _parent(self._root, path) as found:
            self._touched.add(path.rpartition(b"/")[0] or b"/")
            yield found


def _is_made(change: Change) -> bool:
    """Whether a new inode takes the place, rather than other metadata the inode that is there."""
    if change.new is None or stat.S_ISDIR(change.new.mode):
        return False
    is_metadata = change.kind is Kind.CHANGED and _METADATA.issuperset(change.what)
    return not is_metadata or not stat.S_ISREG(change.new.mode)


@contextmanager
def _parent(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that a path lies in, and its name there; follows no symlink."""
    *above, name = path.split(b"/")[1:]
    fd = os.dup(root)
    try:
        for part in above:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _described(error: OSError) -> str:
    where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if error.errno == errno.ENOTEMPTY:
        return f"{where} has something in it that is not the image's: move it away"
    if error.errno == errno.EXDEV:
        return "another file system is mounted below it, where the image has files: unmount it"
    return describe(error)
