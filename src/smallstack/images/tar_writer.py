"""A tree as a tar archive: the members in order, each a header and the object that follows it.

POSIX.1-2001 (pax), as GNU tar, bsdtar and `tar` of this package read it: times to the nanosecond,
extended attributes and ACLs as ``SCHILY.xattr.*``, hard links to the first path of an inode. Names
are sorted and nothing stands in it that the tree does not hold, so equal trees give equal bytes.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Final, NamedTuple

from smallstack.proto.filesystem import FileSystem, Inode
from smallstack.proto.kinds import NANOSECONDS_PER_SECOND

BLOCK: Final = tarfile.BLOCKSIZE
END: Final = bytes(tarfile.RECORDSIZE)
"""What ends an archive: two blocks of zeros at least."""
_RDEV_LIMIT: Final = 1 << 32
_XATTR: Final = b"SCHILY.xattr."
_NAME_ROOM: Final = tarfile.LENGTH_NAME - 1  # a directory's gets a slash
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class TarMember(NamedTuple):
    """A header of whole blocks, and the content behind it: an object, b"" for none."""

    header: bytes
    hash: bytes
    size: int

    @property
    def padding(self) -> bytes:
        """What fills the content's last block."""
        return bytes(-self.size % BLOCK)


def tar_members(tree: FileSystem, left_out: list[bytes]) -> Iterator[TarMember]:
    """The members; paths of what no archive holds are put into ``left_out``: sockets, and devices
    with numbers that Linux does not have.

    A computed file is empty, a directory or symlink without an mtime has that of the epoch.
    """
    first: dict[int, bytes] = {}
    for path, index in _sorted_walk(tree):
        inode = tree.inode(index)
        if stat.S_IFMT(inode.mode) not in _TYPES or inode.rdev >= _RDEV_LIMIT:
            left_out.append(path)
            continue
        known = first.setdefault(index, path)
        linked = known if known != path else b""
        size = inode.size if inode.hash and not linked else 0
        yield TarMember(_header(path, inode, linked, size), inode.hash if size else b"", size)


def _sorted_walk(tree: FileSystem) -> Iterator[tuple[bytes, int]]:
    yield b"/", 0
    stack = [(b"", sorted(tree.children(0), reverse=True))]
    while stack:
        parent, left = stack[-1]
        if not left:
            stack.pop()
            continue
        name, index = left.pop()
        yield parent + b"/" + name, index
        if below := tree.children(index):
            stack.append((parent + b"/" + name, sorted(below, reverse=True)))


def _header(path: bytes, inode: Inode, linked: bytes, size: int) -> bytes:
    info = tarfile.TarInfo()
    pax: dict[bytes, bytes] = {}
    info.type = tarfile.LNKTYPE if linked else _TYPES[stat.S_IFMT(inode.mode)]
    info.mode = stat.S_IMODE(inode.mode)
    info.name = _text(b"." + path, b"path", _NAME_ROOM, pax)
    target = b"." + linked if linked else inode.target if stat.S_ISLNK(inode.mode) else b""
    info.linkname = _text(target, b"linkpath", tarfile.LENGTH_LINK, pax)
    info.uid = _number(inode.uid, b"uid", 8, pax)
    info.gid = _number(inode.gid, b"gid", 8, pax)
    info.size = _number(size, b"size", 12, pax)
    if info.type in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
        info.devmajor, info.devminor = os.major(inode.rdev), os.minor(inode.rdev)
    seconds, nanoseconds = divmod(inode.mtime_ns or 0, NANOSECONDS_PER_SECOND)
    if nanoseconds or seconds < 0:
        pax[b"mtime"] = _decimal(inode.mtime_ns or 0)
    else:
        info.mtime = _number(seconds, b"mtime", 12, pax)
    if not linked:
        for name, value in inode.xattrs.items():
            # As GNU tar writes an attribute's name, since "=" ends it.
            pax[_XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
    return _extended(pax) + info.tobuf(tarfile.USTAR_FORMAT, "ascii")


def _extended(pax: dict[bytes, bytes]) -> bytes:
    """The member that says what the header after it has no room for; nothing if there is none."""
    if not pax:
        return b""
    data = b"".join(_record(key, value) for key, value in pax.items())
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii") + data + bytes(-len(data) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE LF``; the length is that of the whole record, itself included."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _text(data: bytes, key: bytes, room: int, pax: dict[bytes, bytes]) -> str:
    """A header's field; with what does not fit there in ``pax``."""
    if len(data) > room or not data.isascii():
        pax[key] = data
    return data[:room].decode("ascii", "replace").replace("\ufffd", "?")


def _number(value: int, key: bytes, width: int, pax: dict[bytes, bytes]) -> int:
    if value < 8 ** (width - 1):
        return value
    pax[key] = b"%d" % value
    return 0


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), NANOSECONDS_PER_SECOND)
    return b"%s%d.%09d" % (sign, seconds, rest)
