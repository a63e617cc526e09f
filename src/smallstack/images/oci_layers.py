"""What a container image's layers come to, put one over the other by their headers alone.

A path is a path in the tree: no symlink is followed, of whichever layer it is. What a layer hides
(``.wh.NAME``, and all of a directory by ``.wh..wh..opq``) is gone before anything of the layer
itself is put in, wherever in the layer the word for it stands. A file takes the place of what
lower layers have there, a directory that of anything but a directory, which it only gives other
metadata. A hard link leads to what has its name at that moment, and keeps it when that name goes.
"""

import posixpath
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from smallstack.images.build import SKIPPED_AT_THE_TOP
from smallstack.images.errors import TarError
from smallstack.images.tar import PathBudget, clean_path
from smallstack.images.tar_reader import Member, shown

MAX_ENTRIES: Final = 1 << 21
"""Members of all layers together."""
_HIDES: Final = b".wh."
_HIDES_ALL: Final = b".wh..wh..opq"
_OF_AUFS: Final = b".wh..wh."
_LAYER_SHIFT: Final = 32


class Directory:
    """A directory: where its metadata are (see `Stack`; None: nobody said), and what is in it."""

    __slots__ = ("children", "inode")

    def __init__(self, inode: int | None = None) -> None:
        self.inode = inode
        self.children: dict[bytes, int | Directory] = {}


class _Entry(NamedTuple):
    """A member that is to be put in; ``link`` is a hard link's target."""

    path: bytes
    inode: int
    is_directory: bool
    link: bytes | None


class Stack:
    """The layers so far. An inode is the number of its layer and that of its member in it."""

    def __init__(self) -> None:
        self.root = Directory()
        self._entries = 0
        self._layer = 0
        self._budget = PathBudget()

    def add(self, members: Iterator[Member]) -> None:
        """Put a layer over what is there; raises TarError."""
        self._budget = PathBudget()  # what is held of a layer goes with it
        entries, hidden = self._read(members)
        for path in hidden:
            self._hide(path)
        seen: set[bytes] = set()
        for entry in entries:
            self._put(entry, seen)
        self._layer += 1

    def _read(self, members: Iterator[Member]) -> tuple[list[_Entry], list[bytes]]:
        entries, hidden = [], []
        for ordinal, member in enumerate(members):
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise TarError(detail=f"with it the layers have more than {MAX_ENTRIES} members")
            path = clean_path(member.name)
            self._budget.spend(path)
            if path == b"/" + SKIPPED_AT_THE_TOP or path.startswith(b"/.subd/"):
                continue
            if _HIDES in path and _is_word(path):
                if word := _word(path):
                    hidden.append(word)
                continue
            inode = inode_of(self._layer, ordinal)
            link = clean_path(member.target) if member.kind == 0 else None
            self._budget.spend(link or b"")
            entries.append(_Entry(path, inode, member.kind == stat.S_IFDIR, link))
        return entries, hidden

    def _hide(self, path: bytes) -> None:
        """What of lower layers a word hides; nothing when there is nothing."""
        above, name = posixpath.split(path)
        directory = self.find(above)
        if not isinstance(directory, Directory):
            return
        if name == _HIDES_ALL:
            directory.children.clear()
        else:
            directory.children.pop(name, None)

    def _put(self, entry: _Entry, seen: set[bytes]) -> None:
        path, name = entry.path, posixpath.basename(entry.path)
        if path in seen:
            raise TarError(detail=f"it has {shown(path[1:])} twice")
        if path == b"/":
            if not entry.is_directory:
                raise TarError(detail="its top is no directory")
            self.root.inode = entry.inode
            return
        above = self._above(path, seen)
        there = above.children.get(name)
        if entry.is_directory:
            if isinstance(there, Directory):
                there.inode = entry.inode
            else:
                above.children[name] = Directory(entry.inode)
            seen.add(path + b"/")
            return
        if isinstance(there, Directory) and path + b"/" in seen:
            raise TarError(detail=f"it has {shown(path[1:])} twice, once as a directory")
        above.children[name] = entry.inode if entry.link is None else self._linked(path, entry.link)
        seen.add(path)

    def _linked(self, path: bytes, target: bytes) -> int:
        """The inode that a hard link leads to; raises TarError."""
        inode = self.find(target)
        what = f"{shown(path[1:])} is a hard link to"
        if isinstance(inode, Directory):
            raise TarError(detail=f"{what} the directory {shown(target[1:])}")
        if inode is None:
            raise TarError(detail=f"{what} {shown(target[1:])}, which does not stand before it")
        return inode

    def _above(self, path: bytes, seen: set[bytes]) -> Directory:
        """The directory a path is in, made where there is none; raises TarError."""
        directory, so_far = self.root, b""
        for part in path.split(b"/")[1:-1]:
            so_far += b"/" + part
            mark = so_far + b"/"
            if mark not in seen:
                self._budget.spend(mark)
                seen.add(mark)
            below = directory.children.get(part)
            if below is None:
                below = directory.children[part] = Directory()
            elif not isinstance(below, Directory):
                raise TarError(
                    detail=f"it has something below {shown(so_far[1:])}, which is no directory"
                )
            directory = below
        return directory

    def find(self, path: bytes) -> "int | Directory | None":
        """What stands at an absolute path."""
        found: int | Directory | None = self.root
        for part in path.split(b"/"):
            if not part:
                continue
            if not isinstance(found, Directory):
                return None
            found = found.children.get(part)
        return found


def inode_of(layer: int, ordinal: int) -> int:
    """The inode that a layer's member is."""
    return layer << _LAYER_SHIFT | ordinal


def place(inode: int) -> tuple[int, int]:
    """The layer an inode is of, and which of its members."""
    return inode >> _LAYER_SHIFT, inode & ((1 << _LAYER_SHIFT) - 1)


def _is_word(path: bytes) -> bool:
    return any(part.startswith(_HIDES) for part in path.split(b"/"))


def _word(path: bytes) -> bytes:
    """The path that is hidden, or that of the opaque mark; b"" for what is only aufs's own."""
    *above, name = path.split(b"/")
    if any(part.startswith(_OF_AUFS) for part in above):
        return b""
    if any(part.startswith(_HIDES) for part in above):
        raise TarError(detail=f"it has {shown(path[1:])}, below a mark that hides something")
    if name == _HIDES_ALL:
        return path
    if name.startswith(_OF_AUFS):
        return b""
    hidden = name[len(_HIDES) :]
    if hidden in {b"", b".", b".."}:
        raise TarError(detail=f"it has {shown(path[1:])}, which hides nothing that can be")
    return b"/".join((*above, hidden))
