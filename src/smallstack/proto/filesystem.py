"""File-system trees: the packed form that images decode to, and the records that travel.

:class:`FileSystem` holds a whole tree in three byte strings, laid out as in ``csrc/tree.h``, so
that a million inodes are not a million Python objects. :class:`FileSystemBuilder` makes one inode
by inode. The message classes below (``RegularInode`` and so on) are single inodes, for the few
calls that carry some; ``xattrs``, and the mtimes of directories and symlinks, are fields that
other implementations skip.
"""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

import stat
import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final, NamedTuple, TypeAlias

from msgspec import field

from smallstack.proto import tree
from smallstack.proto.errors import TreeError
from smallstack.proto.kinds import (
    HASH_SIZE,
    NANOSECONDS_PER_SECOND,
    Embedded,
    Hash,
    Int32,
    Int64,
    Message,
    Named,
    Pointed,
    Uint32,
    Uint64,
    Wire,
)

Filename: TypeAlias = Annotated[str, Wire("string", "filesystem.Filename")]
InodeNumber: TypeAlias = Annotated[int, Wire("uint", "filesystem.InodeNumber")]

INODE: Final = struct.Struct("<QQqiIIIQIIIIIIII64s")
"""``struct ss_inode`` of csrc/tree.h: 144 bytes."""

ENTRY: Final = struct.Struct("<III")
"""``struct ss_entry`` of csrc/tree.h: 12 bytes."""

HAS_MTIME: Final = 1
COMPUTED: Final = 2

_ENTRY_RANGE: Final = struct.Struct("<II")

BLOCK_SIZE: Final = 4096
MAX_XATTRS: Final = 1 << 20


class ComputedFile(Message, kw_only=True):
    """A file whose content each machine gets from a file generator."""

    go_package: ClassVar[str] = "filesystem"
    filename: str = ""
    source: str = ""


class DirectoryEntry(Message, kw_only=True):
    """A name in a directory."""

    go_package: ClassVar[str] = "filesystem"
    name: str = ""
    inode_number: Uint64 = 0
    """A key of `InodeTable`."""


class DirectoryInode(Message, kw_only=True):
    """A directory."""

    go_package: ClassVar[str] = "filesystem"
    entry_list: list[Pointed[DirectoryEntry]] = []
    entries_by_name: dict[str, Pointed[DirectoryEntry]] = {}
    """Never sent."""
    mode: Annotated[int, Wire("uint32", "filesystem.FileMode")] = 0
    """Permissions and kind, as in `struct stat`."""
    uid: Uint32 = 0
    gid: Uint32 = 0
    mtime_nano_seconds: Int32 = 0
    mtime_seconds: Int64 = 0
    xattrs: dict[str, bytes] = {}


class RegularInode(Message, kw_only=True):
    """A regular file; ``size`` in bytes."""

    go_package: ClassVar[str] = "filesystem"
    mode: Annotated[int, Wire("uint32", "filesystem.FileMode")] = 0
    """Permissions and kind, as in `struct stat`."""
    uid: Uint32 = 0
    gid: Uint32 = 0
    mtime_nano_seconds: Int32 = 0
    mtime_seconds: Int64 = 0
    size: Uint64 = 0
    hash: Hash = Hash.zero
    """SHA-512; all zero where the file is empty."""
    xattrs: dict[str, bytes] = {}


class ComputedRegularInode(Message, kw_only=True):
    """A regular file whose content comes from a file generator."""

    go_package: ClassVar[str] = "filesystem"
    mode: Annotated[int, Wire("uint32", "filesystem.FileMode")] = 0
    """Permissions and kind, as in `struct stat`."""
    uid: Uint32 = 0
    gid: Uint32 = 0
    source: str = ""
    """`host:port` of the file generator."""
    xattrs: dict[str, bytes] = {}


class SymlinkInode(Message, kw_only=True):
    """A symbolic link."""

    go_package: ClassVar[str] = "filesystem"
    uid: Uint32 = 0
    gid: Uint32 = 0
    symlink: str = ""
    mtime_nano_seconds: Int32 = 0
    mtime_seconds: Int64 = 0
    xattrs: dict[str, bytes] = {}


class SpecialInode(Message, kw_only=True):
    """A device or a fifo."""

    go_package: ClassVar[str] = "filesystem"
    mode: Annotated[int, Wire("uint32", "filesystem.FileMode")] = 0
    """Permissions and kind, as in `struct stat`."""
    uid: Uint32 = 0
    gid: Uint32 = 0
    mtime_nano_seconds: Int32 = 0
    mtime_seconds: Int64 = 0
    rdev: Uint64 = 0
    """As in `struct stat`."""
    xattrs: dict[str, bytes] = {}


GenericInode: TypeAlias = Annotated[
    DirectoryInode | RegularInode | ComputedRegularInode | SymlinkInode | SpecialInode | None,
    Wire("interface", "filesystem.GenericInode"),
]
"""Any inode: an interface value, which travels under the name ``*filesystem.RegularInode`` etc."""


class FileSystemRecord(Message, kw_only=True):
    """What a :class:`FileSystem` is on the wire; the codecs never make one of these."""

    go_package: ClassVar[str] = "filesystem"
    go_type: ClassVar[str] = "FileSystem"
    inode_table: Annotated[dict[Uint64, GenericInode], Named("filesystem", "InodeTable")] = {}
    num_regular_inodes: Uint64 = 0
    total_data_bytes: Uint64 = 0
    directory_count: Uint64 = 0
    directory_inode: Embedded[DirectoryInode] = field(default_factory=DirectoryInode)


class Inode(NamedTuple):
    """One inode of a packed tree, unpacked; fields as in ``struct ss_inode``."""

    number: int
    size: int
    mtime_sec: int
    mtime_nsec: int
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    hash: bytes
    xattrs: dict[bytes, bytes]
    flags: int

    @property
    def mtime_ns(self) -> int | None:
        """Nanoseconds after the epoch; None for a directory or symlink without an mtime."""
        if self.flags & COMPUTED:
            return None
        if not self.flags & HAS_MTIME and (stat.S_ISDIR(self.mode) or stat.S_ISLNK(self.mode)):
            return None
        return self.mtime_sec * NANOSECONDS_PER_SECOND + self.mtime_nsec


class FileSystem:
    """A file-system tree, packed and immutable; inode 0 is the root directory."""

    __slots__ = (
        "blob",
        "directory_count",
        "entries",
        "inodes",
        "num_regular_inodes",
        "total_data_bytes",
    )

    def __init__(
        self,
        inodes: bytes,
        entries: bytes,
        blob: bytes,
        *,
        num_regular_inodes: int,
        total_data_bytes: int,
        directory_count: int,
    ) -> None:
        """The tables are checked by whoever makes them: the builder, or the gob decoder."""
        self.inodes = inodes
        self.entries = entries
        self.blob = blob
        self.num_regular_inodes = num_regular_inodes
        self.total_data_bytes = total_data_bytes
        self.directory_count = directory_count

    def __len__(self) -> int:
        return len(self.inodes) // INODE.size

    def __repr__(self) -> str:
        return f"<FileSystem: {len(self)} inodes, {self.total_data_bytes} bytes of data>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FileSystem):
            return NotImplemented
        return (
            self.num_regular_inodes == other.num_regular_inodes
            and self.total_data_bytes == other.total_data_bytes
            and self.directory_count == other.directory_count
            and len(self) == len(other)
            and all(
                self.inode(index) == other.inode(index)
                and self.children(index) == other.children(index)
                for index in range(len(self))
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def inode(self, index: int) -> Inode:
        """The inode at ``index``; raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = INODE.unpack_from(self.inodes, index * INODE.size)
        (number, size, mtime_sec, mtime_nsec, mode, uid, gid, rdev, data_off, data_len) = record[
            :10
        ]
        xattr_off, xattr_len, flags = record[12:15]
        return Inode(
            number,
            size,
            mtime_sec,
            mtime_nsec,
            mode,
            uid,
            gid,
            rdev,
            self.blob[data_off : data_off + data_len],
            record[16] if size and stat.S_ISREG(mode) and not flags & COMPUTED else b"",
            _xattrs(self.blob[xattr_off : xattr_off + xattr_len]) if xattr_len else {},
            flags,
        )

    def children(self, index: int) -> list[tuple[bytes, int]]:
        """Names and inode indexes in a directory, in wire order; empty for anything else."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, count = struct.unpack_from("<II", self.inodes, index * INODE.size + 56)
        start = first * ENTRY.size
        blob = self.blob
        return [
            (blob[name_off : name_off + name_len], inode)
            for inode, name_off, name_len in ENTRY.iter_unpack(
                self.entries[start : start + count * ENTRY.size]
            )
        ]

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """Absolute path and inode index of everything, depth first; the root is ``(b"/", 0)``."""
        yield b"/", 0
        stack = [(b"", iter(self.children(0)))]
        while stack:
            parent, names = stack[-1]
            for name, index in names:
                path = parent + b"/" + name
                yield path, index
                if below := self.children(index):
                    stack.append((path, iter(below)))
                    break
            else:
                stack.pop()

    def lookup(self, path: bytes) -> int | None:
        """The inode index of an absolute path, following no symlinks; None if there is none."""
        index = 0
        for part in path.split(b"/"):
            if part in {b"", b"."}:
                continue
            index = dict(self.children(index)).get(part, -1)
            if index < 0:
                return None
        return index

    def objects(self) -> dict[bytes, int]:
        """SHA-512 to size in bytes, of every regular file that is not empty."""
        return tree.objects(self.inodes)

    def usage_estimate(self) -> int:
        """Bytes on disk: 4096 a directory, files rounded up to 4096, 64 a symlink; not the root."""
        return tree.usage(self.inodes)


def _xattrs(packed: bytes) -> dict[bytes, bytes]:
    found = {}
    position = 0
    while position < len(packed):
        name_len, value_len = struct.unpack_from("<HI", packed, position)
        position += 6
        name = packed[position : position + name_len]
        position += name_len
        found[name] = packed[position : position + value_len]
        position += value_len
    return found


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Extended attributes as the blob holds them, sorted by name; raises TreeError."""
    parts = []
    for name, value in sorted(xattrs.items()):
        if not 1 <= len(name) <= 255 or b"\0" in name or len(value) > 65536:
            raise TreeError(what=f"extended attribute {name[:64]!r} of {len(value)} bytes")
        parts.append(struct.pack("<HI", len(name), len(value)) + name + value)
    packed = b"".join(parts)
    if len(packed) > MAX_XATTRS:
        raise TreeError(what=f"extended attributes of one inode take {len(packed)} bytes")
    return packed


_SPECIAL: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK})


class FileSystemBuilder:
    """Collects inodes and names, then packs them. The root directory is there from the start.

    It costs what the packed tree costs: no Python object is kept for an inode.
    """

    def __init__(
        self,
        mode: int = 0o40755,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int | None = None,
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._inodes = bytearray()
        self._entries = bytearray()
        self._blob = bytearray()
        self._owners = array("I")
        self._number = 0
        self.add(mode=mode | stat.S_IFDIR, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs)

    def add(
        self,
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        hash: bytes = b"",  # noqa: A002 - the field's name everywhere
        target: bytes = b"",
        rdev: int = 0,
        mtime_ns: int | None = None,
        xattrs: Mapping[bytes, bytes] | None = None,
        number: int | None = None,
        computed: bool = False,
    ) -> int:
        """A new inode's index. ``mode`` has its type bits; ``target`` is a symlink's.

        A *computed* regular file has its source in ``target``. The number in the image is the
        index unless ``number`` says otherwise; numbers have to rise. Raises TreeError when the
        parts do not fit together.
        """
        kind = stat.S_IFMT(mode)
        index = len(self._inodes) // INODE.size
        flags = 0
        if number is None:
            number = index
        if index > 1 and number <= self._number:
            raise TreeError(what=f"inode {number} comes behind inode {self._number}")
        if kind != stat.S_IFLNK and not computed:
            target = b""
        if kind == stat.S_IFREG:
            if computed:
                flags |= COMPUTED
            elif size and len(hash) != HASH_SIZE:
                raise TreeError(what=f"a file of {size} bytes has a digest of {len(hash)} bytes")
        elif kind == stat.S_IFLNK:
            if not target or len(target) > 4095 or b"\0" in target:
                raise TreeError(what=f"symlink target {target[:64]!r} of {len(target)} bytes")
        elif kind != stat.S_IFDIR and kind not in _SPECIAL:
            raise TreeError(what=f"mode {mode:o} has no file type")
        if kind in {stat.S_IFDIR, stat.S_IFLNK} and mtime_ns is not None:
            flags |= HAS_MTIME
        seconds, nanoseconds = divmod(mtime_ns or 0, NANOSECONDS_PER_SECOND)
        regular = kind == stat.S_IFREG and not flags & COMPUTED
        packed = pack_xattrs(xattrs) if xattrs else b""
        try:
            record = INODE.pack(
                number,
                size if regular else 0,
                seconds,
                nanoseconds,
                mode,
                uid,
                gid,
                rdev if kind in _SPECIAL else 0,
                self._keep(target),
                len(target),
                0,
                0,
                self._keep(packed),
                len(packed),
                flags,
                0,
                hash if regular and size else b"",
            )
        except struct.error as error:
            raise TreeError(what=f"inode {number} has a number out of range: {error}") from None
        self._inodes += record
        self._number = number
        return index

    def restate_directory(
        self,
        index: int,
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int | None = None,
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Gives a directory that was added before other metadata; raises TreeError."""
        start = index * INODE.size
        old = INODE.unpack_from(self._inodes, start)
        if not stat.S_ISDIR(old[4]) or not stat.S_ISDIR(mode):
            raise TreeError(what=f"inode {index} is not a directory")
        seconds, nanoseconds = divmod(mtime_ns or 0, NANOSECONDS_PER_SECOND)
        packed = pack_xattrs(xattrs) if xattrs else b""
        flags = HAS_MTIME if mtime_ns is not None else 0
        times = (seconds, nanoseconds)
        xattr = (self._keep(packed), len(packed))
        record = (*old[:2], *times, mode, uid, gid, *old[7:12], *xattr, flags, *old[15:])
        try:
            INODE.pack_into(self._inodes, start, *record)
        except struct.error as error:
            raise TreeError(what=f"inode {index} has a number out of range: {error}") from None

    def link(self, directory: int, name: bytes, inode: int) -> None:
        """Puts an inode into a directory; more than one link to it are hard links."""
        if not stat.S_ISDIR(INODE.unpack_from(self._inodes, directory * INODE.size)[4]):
            raise TreeError(what=f"inode {directory} is not a directory: it cannot hold {name!r}")
        if len(self._blob) + len(name) >= 1 << 32:
            raise TreeError(what="names, targets and attributes take more than 4 GiB")
        self._owners.append(directory)
        self._entries += ENTRY.pack(inode, len(self._blob), len(name))
        self._blob += name

    def build(self) -> FileSystem:
        """The packed tree; directories keep the order of their links.

        Raises TreeError for bad names, the same name twice in a directory, and directories that
        are linked twice or form a loop. Inodes without a link are left out.
        """
        counts = array("I", bytes(4 * (len(self._inodes) // INODE.size)))
        for owner in self._owners:
            counts[owner] += 1
        places = array("I", counts)
        first = 0
        for index, count in enumerate(counts):
            places[index] = first
            if count:
                _ENTRY_RANGE.pack_into(self._inodes, index * INODE.size + 56, first, count)
            first += count
        entries = bytearray(len(self._entries))
        for number, owner in enumerate(self._owners):
            to, start = places[owner] * ENTRY.size, number * ENTRY.size
            entries[to : to + ENTRY.size] = self._entries[start : start + ENTRY.size]
            places[owner] += 1
        packed = tree.finish(bytes(self._inodes), bytes(entries), bytes(self._blob))
        regular, total, directories = tree.totals(packed[0])
        return FileSystem(
            *packed,
            num_regular_inodes=regular,
            total_data_bytes=total,
            directory_count=directories,
        )

    def _keep(self, data: bytes) -> int:
        if not data:
            return 0
        offset = len(self._blob)
        self._blob += data
        return offset
