"""What differs between two trees: paths that came, that went, and what changed in the rest.

Two trees are walked side by side, names in the order of their bytes. A directory that came or went
is told of with all that is in it. Inode numbers and the order of names are nothing: a tree that
was unpacked and scanned again is the same.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from smallstack.proto.filesystem import COMPUTED, FileSystem, Inode

_LINKS: Final = "links"


class Kind(Enum):
    """What became of a path."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One path; ``what`` names what changed in it: type, content, target, mode, owner, mtime, …"""

    path: bytes
    kind: Kind
    what: tuple[str, ...]
    old: Inode | None
    new: Inode | None


class Totals(NamedTuple):
    """Sums over changes, and over the objects that only one tree has, in bytes."""

    added: int
    removed: int
    changed: int
    new_objects: int
    new_object_bytes: int
    gone_objects: int
    gone_object_bytes: int


def differences(old: FileSystem, new: FileSystem) -> Iterator[Change]:
    """Every path that is not the same in both, in the order of a walk."""
    return _Walk(old, new).changes()


def totals(old: FileSystem, new: FileSystem, changes: list[Change]) -> Totals:
    """What ``changes`` come to, and the objects that would have to be fetched for ``new``."""
    counts = dict.fromkeys(Kind, 0)
    for change in changes:
        counts[change.kind] += 1
    before, after = old.objects(), new.objects()
    came = [size for hash_, size in after.items() if hash_ not in before]
    went = [size for hash_, size in before.items() if hash_ not in after]
    return Totals(
        counts[Kind.ADDED],
        counts[Kind.REMOVED],
        counts[Kind.CHANGED],
        len(came),
        sum(came),
        len(went),
        sum(went),
    )


class _Walk:
    def __init__(self, old: FileSystem, new: FileSystem) -> None:
        self._old = old
        self._new = new
        self._old_groups = _link_groups(old)
        self._new_groups = _link_groups(new)

    def changes(self) -> Iterator[Change]:
        """The root, then what is below it."""
        yield from self._both(b"/", 0, 0)
        stack = [(b"", iter(self._names(0, 0)))]
        while stack:
            parent, names = stack[-1]
            for name, old, new in names:
                path = parent + b"/" + name
                if old is None or new is None:
                    yield from self._one(path, old, new)
                    continue
                yield from self._both(path, old, new)
                old_is_directory = _is_directory(self._old, old)
                if old_is_directory and _is_directory(self._new, new):
                    stack.append((path, iter(self._names(old, new))))
                    break
                if old_is_directory:
                    yield from self._below(self._old, path, old, Kind.REMOVED)
                else:
                    yield from self._below(self._new, path, new, Kind.ADDED)
            else:
                stack.pop()

    def _names(self, old: int, new: int) -> list[tuple[bytes, int | None, int | None]]:
        """The names in two directories, sorted, each with its inode in both."""
        before, after = dict(self._old.children(old)), dict(self._new.children(new))
        return [(name, before.get(name), after.get(name)) for name in sorted(before | after)]

    def _one(self, path: bytes, old: int | None, new: int | None) -> Iterator[Change]:
        """A path that only one tree has, with what is below it."""
        if new is not None:
            yield Change(path, Kind.ADDED, (), None, self._new.inode(new))
            yield from self._below(self._new, path, new, Kind.ADDED)
        elif old is not None:
            yield Change(path, Kind.REMOVED, (), self._old.inode(old), None)
            yield from self._below(self._old, path, old, Kind.REMOVED)

    def _below(self, tree: FileSystem, path: bytes, index: int, kind: Kind) -> Iterator[Change]:
        stack = [(path, sorted(tree.children(index), reverse=True))]
        while stack:
            parent, left = stack[-1]
            if not left:
                stack.pop()
                continue
            name, child = left.pop()
            inode = tree.inode(child)
            old, new = (inode, None) if kind is Kind.REMOVED else (None, inode)
            yield Change(parent + b"/" + name, kind, (), old, new)
            if below := tree.children(child):
                stack.append((parent + b"/" + name, sorted(below, reverse=True)))

    def _both(self, path: bytes, old: int, new: int) -> Iterator[Change]:
        before, after = self._old.inode(old), self._new.inode(new)
        what = _changed(before, after)
        if self._old_groups.get(old) != self._new_groups.get(new):
            what.append(_LINKS)
        if what:
            yield Change(path, Kind.CHANGED, tuple(what), before, after)


def _changed(old: Inode, new: Inode) -> list[str]:
    if _type(old) != _type(new):
        return ["type"]
    what = []
    if old.hash != new.hash or old.size != new.size:
        what.append("content")
    if old.target != new.target:
        what.append("target")
    if old.rdev != new.rdev:
        what.append("device")
    if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
        what.append("mode")
    if (old.uid, old.gid) != (new.uid, new.gid):
        what.append("owner")
    if old.mtime_ns != new.mtime_ns:
        what.append("mtime")
    if old.xattrs != new.xattrs:
        what.append("xattrs")
    return what


def _type(inode: Inode) -> tuple[int, int]:
    return stat.S_IFMT(inode.mode), inode.flags & COMPUTED


def _is_directory(tree: FileSystem, index: int) -> bool:
    return stat.S_ISDIR(tree.inode(index).mode)


def _link_groups(tree: FileSystem) -> dict[int, frozenset[bytes]]:
    """The paths of every inode that has more than one."""
    first: dict[int, bytes] = {}
    groups: dict[int, list[bytes]] = {}
    for path, index in tree.walk():
        if index in first:
            groups.setdefault(index, [first[index]]).append(path)
        else:
            first[index] = path
    return {index: frozenset(paths) for index, paths in groups.items()}
