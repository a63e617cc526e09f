"""Lays a tree out as a directory: the way back from `build`.

Everything is made in a new directory beside the wanted one, which takes its name at the end, so a
failure leaves nothing. Contents come from a store whose objects become the files; the last inode
that has a content gets the object's file itself.
"""

import errno
import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from smallstack.images.errors import UnpackError
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import COMPUTED, FileSystem, Inode
from smallstack.telemetry.errors import describe

OBJECTS: Final = ".objects"
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP})


@dataclass
class Unpacked:
    """What could not be laid out as it is in the image."""

    devices: int = 0
    owners: int = 0
    attributes: int = 0
    computed: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """A line for each kind."""
        lines = []
        if self.owners:
            lines.append(f"{self.owners} inode(s) belong to you instead: only root can give away")
        if self.devices:
            lines.append(f"{self.devices} device(s) left out: only root can make them")
        if self.attributes:
            lines.append(f"{self.attributes} extended attribute(s) left out: not permitted here")
        if self.computed:
            lines.append(f"{len(self.computed)} computed file(s) left empty")
        return lines


class Unpacking:
    """One unpacking. A context manager: what is not finished when it ends is removed."""

    def __init__(self, tree: FileSystem, directory: Path) -> None:
        """Raises UnpackError unless ``directory`` is missing or empty."""
        self._tree = tree
        self._directory = directory
        self._work = directory.with_name(directory.name + "~")
        self._root = os.fsencode(self._work)
        self.report = Unpacked()
        try:
            if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
                raise UnpackError(
                    path=directory,
                    detail="there is something already: name another directory, or bring this one "
                    "to the image with `imagetool patch-directory`",
                )
            self._work.mkdir(mode=0o700)
        except FileExistsError:
            raise UnpackError(
                path=directory, detail=f"{self._work} is left from an earlier attempt: remove it"
            ) from None
        except OSError as error:
            raise UnpackError(path=directory, detail=describe(error)) from error
        self.store = ObjectStore(self._work / OBJECTS)
        """Put every object of the tree in here before `finish`."""

    def __enter__(self) -> "Unpacking":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        if self._work.exists():
            shutil.rmtree(self._work, onerror=_make_removable)

    def finish(self) -> Unpacked:
        """Make the directory; in a thread. Raises UnpackError."""
        try:
            maker = self._make()
            self.store.close()
            shutil.rmtree(self._work / OBJECTS)
            maker.settle(self._root, self._tree.inode(0))
            if self._directory.exists():
                self._directory.rmdir()
            self._work.rename(self._directory)
        except OSError as error:
            raise UnpackError(path=self._directory, detail=describe(error)) from error
        return self.report

    def _make(self) -> "InodeMaker":
        tree = self._tree
        uses = Counter(inode.hash for inode in map(tree.inode, range(len(tree))) if inode.hash)
        maker = InodeMaker(self.store, uses, self.report)
        first: dict[int, bytes] = {}
        directories: list[tuple[bytes, int]] = []
        for path, index in tree.walk():
            if index == 0:
                if any(name == os.fsencode(OBJECTS) for name, _ in tree.children(0)):
                    raise UnpackError(path=self._directory, detail=f"it has /{OBJECTS} in it")
                continue
            where = self._root + path
            inode = tree.inode(index)
            if stat.S_ISDIR(inode.mode):
                os.mkdir(where, 0o700)  # noqa: PTH102 - bytes
                directories.append((where, index))
            elif index in first:
                os.link(first[index], where, follow_symlinks=False)
            elif maker.make(where, inode):
                first[index] = where
                maker.settle(where, inode)
        for where, index in reversed(directories):
            maker.settle(where, tree.inode(index))
        return maker


class InodeMaker:
    """Makes inodes by path, of contents that lie in a store; counts what it may not."""

    def __init__(self, store: ObjectStore, uses: Counter[bytes], report: Unpacked) -> None:
        """``uses``: how often each object will be asked for; the last one gets its file."""
        self._store = store
        self._uses = uses
        self._report = report

    def make(self, where: bytes, inode: Inode) -> bool:
        """Make anything but a directory; False if it had to be left out. Raises OSError."""
        kind = stat.S_IFMT(inode.mode)
        if kind == stat.S_IFLNK:
            os.symlink(inode.target, where)  # noqa: PTH211 - bytes
        elif kind == stat.S_IFREG and inode.hash:
            self._uses[inode.hash] -= 1
            source = os.fsencode(self._store.path(inode.hash))
            if self._uses[inode.hash] > 0:
                shutil.copyfile(source, where)
            else:
                os.rename(source, where)  # noqa: PTH104 - bytes
        elif kind == stat.S_IFREG:
            os.close(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            if inode.flags & COMPUTED:
                self._report.computed.append(os.fsdecode(where))
        elif kind == stat.S_IFIFO:
            os.mkfifo(where)
        else:
            try:
                os.mknod(where, inode.mode, inode.rdev)
            except PermissionError:
                self._report.devices += 1
                return False
        return True

    def settle(self, where: bytes | int, inode: Inode) -> None:
        """Owner, mode, attributes, time, in this order, because each may undo the next.

        ``where`` is a path, or a descriptor of a file or directory. Raises OSError.
        """
        follow = isinstance(where, int)  # a descriptor has been followed
        try:
            os.chown(where, inode.uid, inode.gid, follow_symlinks=follow)
        except PermissionError:
            self._report.owners += 1
        if not stat.S_ISLNK(inode.mode):
            os.chmod(where, stat.S_IMODE(inode.mode))  # noqa: PTH101 - bytes
        for name, value in inode.xattrs.items():
            try:
                os.setxattr(where, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._report.attributes += 1
        if (mtime := inode.mtime_ns) is not None:
            os.utime(where, ns=(mtime, mtime), follow_symlinks=follow)


def _make_removable(function: object, path: str, _: object) -> None:
    """A directory without write permission keeps its owner from emptying it."""
    parent = Path(path).parent
    parent.chmod(0o700)
    if Path(path).is_dir() and not Path(path).is_symlink():
        Path(path).chmod(0o700)
        shutil.rmtree(path)
    else:
        Path(path).unlink()
