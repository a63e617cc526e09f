"""Objects on disk: one file each, named by its SHA-512, written whole or not at all.

::

    <directory>/ab/cd/<124 hex digits>      an object; never written to again
    <directory>/ab/<126 hex digits>         the same in a flat store, which is ours: 256 directories
    <directory>/.incoming/<n>~              one on its way in; removed at the next start

An object enters through :class:`Incoming`: bytes in, digest checked at the end, then a rename. The
store keeps no list in memory; the file system is the list. Every method blocks and belongs into a
thread; any number of threads may use one store.
"""

import ctypes
import errno
import fcntl
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

from blake3 import blake3

from smallstack.durable import private_directory
from smallstack.objects.errors import (
    ObjectCorruptError,
    ObjectNotStoredError,
    ObjectSizeError,
    StoreBusyError,
    StoreError,
    StoreSpaceError,
)
from smallstack.objects.holes import punch_hole, runs
from smallstack.proto.kinds import HASH_SIZE, Hash
from smallstack.telemetry.errors import describe

INCOMING: Final = ".incoming"
LOCK: Final = ".lock"
FLAT: Final = ".flat"
"""There in a flat store: nothing has to be moved any more."""
IN_MEMORY: Final = 1 << 20
"""An object of at most this many bytes stays in memory until its digest is known."""
CHUNK: Final = 1 << 20
WRITE_AT_ONCE: Final = 256 << 10
"""Bytes given to the system in one call. It takes page-cache folios as large as that, and a virtual
machine's host has often not backed the memory of large ones: 4 MiB at a time took ten times as
long."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_HEX: Final = frozenset("0123456789abcdef")


class Stored(NamedTuple):
    """An object that is in the store now; ``added`` is False when it was there before."""

    hash: bytes
    size: int
    blake3: bytes
    added: bool
    pack: int = 0
    """The number of the pack it lies in, 0 when it has a file of its own."""
    offset: int = 0
    """Where it begins in that."""
    sum: bytes = b""
    """Its quick sum, where it was worked out: see csrc/quick_sum.h."""


class ObjectStore:
    """Objects by SHA-512 below ``directory``, which is made if it is missing.

    Raises StoreBusyError when another process has the store open, StoreError.
    """

    def __init__(self, directory: Path, *, with_blake3: bool = False, flat: bool = False) -> None:
        """``with_blake3``: what comes in gets its BLAKE3 worked out as well.

        ``flat``: objects lie one directory below; a store of the other kind is made into one.
        """
        self.directory = directory
        self.flat = flat
        self.with_blake3 = with_blake3
        self._root = os.fspath(directory)
        self._incoming = directory / INCOMING
        self._numbers = itertools.count()
        self._has_bucket = bytearray(1 << 16)
        try:
            private_directory(directory)
            self._incoming.mkdir(exist_ok=True)
            self._lock = self._take_lock()
            self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            """Of the directory, for as long as the store is open."""
            for left in self._incoming.iterdir():
                left.unlink()
            if flat and not (directory / FLAT).exists():
                _flatten(self._root)
                (directory / FLAT).touch()
        except BlockingIOError:
            raise StoreBusyError(directory=directory) from None
        except OSError as error:
            raise StoreError(directory=directory, detail=describe(error)) from error

    def close(self) -> None:
        """Let another process have the store."""
        if self._lock >= 0:
            os.close(self.descriptor)
            os.close(self._lock)
            self._lock = self.descriptor = -1

    def path(self, hash_: bytes) -> Path:
        """Where an object is, or would be."""
        return Path(self._name(hash_))

    def size(self, hash_: bytes) -> int | None:
        """Bytes of an object; None when the store lacks it."""
        try:
            return os.stat(self._name(hash_)).st_size or None  # noqa: PTH116 - the hot path
        except FileNotFoundError:
            return None

    def disk_usage(self, hash_: bytes) -> int:
        """Bytes that an object takes on disk, in whole blocks; 0 when the store lacks it."""
        try:
            return os.stat(self._name(hash_)).st_blocks * 512  # noqa: PTH116 - the hot path
        except FileNotFoundError:
            return 0

    def open(self, hash_: bytes) -> BinaryIO:
        """An object's content, unbuffered; raises ObjectNotStoredError."""
        try:
            return open(self._name(hash_), "rb", buffering=0)  # noqa: PTH123 - the hot path
        except FileNotFoundError:
            raise ObjectNotStoredError(hash=hash_.hex(), directory=self.directory) from None

    def put(self, data: bytes | BinaryIO, expected: Hash | None = None) -> Hash:
        """Store bytes, or a file from its position to its end; its digest.

        Raises ObjectCorruptError unless the digest is the ``expected`` one, StoreSpaceError, and
        ValueError for no bytes at all.
        """
        with Incoming(self, None, expected) as incoming:
            if isinstance(data, bytes | bytearray | memoryview):
                incoming.write(data)
            else:
                while chunk := data.read(CHUNK):
                    incoming.write(chunk)
            return Hash(incoming.finish().hash)

    def incoming(
        self,
        size: int | None,
        expected: bytes | None = None,
        server: str = "the sender",
        before_commit: Callable[[Hash], None] | None = None,
    ) -> "Incoming":
        """A new object to write to; ``server`` is named in errors.

        ``before_commit`` is called with its digest before the store looks whether it has the
        object already: whoever deletes objects then knows to leave this one alone.
        """
        return Incoming(self, size, expected, server, before_commit)

    def put_checked(self, hash_: bytes, data: bytes | memoryview) -> bool:
        """Store an object whose digest is known to be right; whether it is new.

        Its file has its own name from the first byte on: for stores that nobody opens again, or
        of which only what an index names is believed. Raises StoreSpaceError or StoreError.
        """
        name = self._name(hash_)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with self.writing(len(data)):
            self._make_bucket(name, hash_)
            try:
                fd = os.open(name, flags, 0o444)
            except FileExistsError:
                with self.incoming(len(data), hash_) as incoming:
                    incoming.write(data)
                    return incoming.finish().added
            try:
                _write_all(fd, data)
            except OSError:
                os.unlink(name)  # noqa: PTH108 - the hot path
                raise
            finally:
                os.close(fd)
        return True

    def unchecked(self, size: int, hash_: bytes) -> "Unchecked":
        """A file of its own for an object of ``size`` bytes that is checked once all are there."""
        return Unchecked(self, size, hash_)

    def delete(self, hash_: bytes) -> int:
        """Remove an object; the bytes it had, 0 when there was none."""
        name = self._name(hash_)
        try:
            size = os.stat(name).st_size  # noqa: PTH116 - the hot path
            os.unlink(name)  # noqa: PTH108 - the hot path
        except FileNotFoundError:
            return 0
        return size

    def verify(self, hash_: bytes) -> Stored:
        """Read an object again and check it; raises ObjectNotStoredError or ObjectCorruptError."""
        with self.open(hash_) as file:
            digest, keyed, size = read_digests(file)
        if digest != hash_:
            raise ObjectCorruptError(hash=hash_.hex(), server=self.directory, found=digest.hex())
        return Stored(Hash(hash_), size, keyed, False)

    def list(self) -> Iterator[tuple[Hash, int]]:
        """As `list_objects` of its directory."""
        return list_objects(self._root, self.flat)

    def sync(self) -> None:
        """Bring everything that was stored to the disk; raises StoreError."""
        if _libc.syncfs(self._lock):
            number = ctypes.get_errno()
            raise StoreError(directory=self.directory, detail=os.strerror(number))

    def _name(self, hash_: bytes) -> str:
        if len(hash_) != HASH_SIZE:
            raise ValueError(f"a SHA-512 digest has {HASH_SIZE} bytes, not {len(hash_)}")
        return object_path(self._root, hash_, self.flat)

    def _temporary(self) -> str:
        return f"{self._root}/{INCOMING}/{next(self._numbers)}~"

    def _take_lock(self) -> int:
        lock = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        return lock

    @contextmanager
    def writing(self, size: int) -> Iterator[None]:
        """Makes a StoreSpaceError or a StoreError of an OSError in writing ``size`` bytes."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise StoreSpaceError(directory=self.directory, size=size) from error
            raise StoreError(directory=self.directory, detail=describe(error)) from error

    def _rename(self, temporary: str, hash_: bytes) -> None:
        name = self._name(hash_)
        for attempt in (1, 2):
            self._make_bucket(name, hash_)
            try:
                os.rename(temporary, name)  # noqa: PTH104 - the hot path
            except FileNotFoundError:
                if attempt == 2:
                    raise
                # Somebody has removed an empty directory.
                self._has_bucket[int.from_bytes(hash_[:2], "big")] = 0
            else:
                return

    def _make_bucket(self, name: str, hash_: bytes) -> None:
        """The directory of an object, unless it was made before."""
        bucket = int.from_bytes(hash_[:2], "big")
        if not self._has_bucket[bucket]:
            directory = name.rpartition("/")[0]
            for one in (directory.rpartition("/")[0], directory):
                with suppress(FileExistsError):
                    os.mkdir(one)  # noqa: PTH102 - the hot path
            self._has_bucket[bucket] = 1


def object_path(root: str, hash_: bytes, flat: bool) -> str:
    """Where an object is in the store below ``root``."""
    digits = hash_.hex()
    if flat:
        return f"{root}/{digits[:2]}/{digits[2:]}"
    return f"{root}/{digits[:2]}/{digits[2:4]}/{digits[4:]}"


def list_objects(root: str, flat: bool) -> Iterator[tuple[Hash, int]]:
    """Digest and size in bytes of every object, bucket by bucket."""
    for first in _buckets(root):
        seconds = ("",) if flat else _buckets(f"{root}/{first}")
        for second in seconds:
            with suppress(FileNotFoundError), os.scandir(f"{root}/{first}/{second}") as d:
                for entry in d:
                    digits = first + second + entry.name
                    if len(digits) == 2 * HASH_SIZE and _HEX.issuperset(digits):
                        with suppress(FileNotFoundError):
                            size = entry.stat(follow_symlinks=False).st_size
                            yield Hash(bytes.fromhex(digits)), size


def _flatten(root: str) -> None:
    """Move the objects of a store of two levels up by one."""
    for first in _buckets(root):
        for second in _buckets(f"{root}/{first}"):
            bucket = f"{root}/{first}/{second}"
            for name in os.listdir(bucket):  # noqa: PTH208 - many
                os.rename(f"{bucket}/{name}", f"{root}/{first}/{second}{name}")  # noqa: PTH104
            os.rmdir(bucket)  # noqa: PTH106


def read_digests(file: BinaryIO) -> tuple[bytes, bytes, int]:
    """SHA-512, BLAKE3 and bytes of a file from its position on."""
    digest, keyed, size = hashlib.sha512(), blake3(), 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        keyed.update(chunk)
        size += len(chunk)
    return digest.digest(), keyed.digest(), size


class Incoming:
    """One object on its way into a store; one thread at a time writes to it.

    A context manager: what is not finished when it ends leaves nothing behind.
    """

    def __init__(
        self,
        store: ObjectStore,
        size: int | None,
        expected: bytes | None = None,
        server: str = "the sender",
        before_commit: Callable[[Hash], None] | None = None,
    ) -> None:
        """``size`` in bytes when it is known beforehand; ``expected`` is the digest, likewise."""
        self.received = 0
        self._store = store
        self._size = size
        self._expected = expected
        self._server = server
        self._before_commit = before_commit
        self._sha512 = hashlib.sha512()
        self._blake3 = blake3() if store.with_blake3 else None
        self._pieces: list[bytes] = []
        self._temporary = ""
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; raises ObjectSizeError for too many, StoreSpaceError, StoreError."""
        self.received += len(data)
        if self._size is not None and self.received > self._size:
            raise self._size_error()
        self._sha512.update(data)
        if self._blake3 is not None:
            self._blake3.update(data)
        if self._fd < 0 and self.received <= IN_MEMORY:
            self._pieces.append(bytes(data))
            return
        with self._store.writing(self._size or self.received):
            if self._fd < 0:
                self._open()
                for piece in self._pieces:
                    _write_all(self._fd, piece)
                self._pieces.clear()
            _write_all(self._fd, data)

    def finish(self) -> Stored:
        """Check the object and put it in its place.

        Raises ObjectSizeError, ObjectCorruptError, StoreSpaceError or StoreError; ValueError for
        an empty object.
        """
        if self._size is not None and self.received != self._size:
            raise self._size_error()
        if not self.received:
            raise ValueError("an object has at least one byte")
        digest = Hash(self._sha512.digest())
        if self._expected is not None and digest != self._expected:
            raise ObjectCorruptError(
                hash=self._expected.hex(), server=self._server, found=digest.hex()
            )
        store = self._store
        if self._before_commit is not None:
            self._before_commit(digest)
        keyed = self._blake3.digest() if self._blake3 is not None else b""
        name = store._name(digest)
        with store.writing(self.received):
            if self._same_as(name):
                return Stored(digest, self.received, keyed, False)
            if self._fd < 0:
                self._open()
                for piece in self._pieces:
                    _write_all(self._fd, piece)
            os.close(self._fd)
            self._fd = -2
            store._rename(self._temporary, digest)
            self._temporary = ""
        return Stored(digest, self.received, keyed, True)

    def abort(self) -> None:
        """Forget it; does nothing after `finish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -2
        if self._temporary:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)  # noqa: PTH108 - the hot path
            self._temporary = ""
        self._pieces.clear()

    def _open(self) -> None:
        self._temporary = self._store._temporary()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o444)
        if self._size is not None and self._size > IN_MEMORY:
            # Fails at once where there is no room, and keeps a large object in few extents.
            with suppress(_NotSupportedError):
                _allocate(self._fd, self._size)

    def _same_as(self, name: str) -> bool:
        """Whether the file is there with these very bytes: one that was damaged is replaced."""
        try:
            if os.stat(name).st_size != self.received:  # noqa: PTH116 - the hot path
                return False
            with open(name, "rb", buffering=0) as old:  # noqa: PTH123 - the hot path
                if self._fd < 0:
                    return old.read(self.received + 1) == b"".join(self._pieces)
                os.lseek(self._fd, 0, os.SEEK_SET)
                while True:
                    theirs, ours = old.read(CHUNK), os.read(self._fd, CHUNK)
                    if theirs != ours:
                        return False
                    if not ours:
                        return True
        except FileNotFoundError:
            return False

    def _size_error(self) -> ObjectSizeError:
        shown = self._expected.hex() if self._expected is not None else "(digest not known yet)"
        return ObjectSizeError(
            hash=shown, server=self._server, found=self.received, size=self._size
        )


class Unchecked:
    """A large object on its way in, whose file is read again to be checked.

    Whoever compares its digests calls `commit` if they are right, and `abort` in any case.
    """

    def __init__(self, store: ObjectStore, size: int, hash_: bytes) -> None:
        """Raises StoreSpaceError, at once where there is no room, or StoreError."""
        self.size = size
        self.left = size
        """Bytes to come."""
        self.hash = Hash(hash_)
        self._store = store
        self._temporary = store._temporary()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with store.writing(size):
            self.descriptor = os.open(self._temporary, flags, 0o444)
            try:
                if size > IN_MEMORY:
                    with suppress(_NotSupportedError):
                        _allocate(self.descriptor, size)
            except OSError:
                self.abort()
                raise

    def write(self, data: bytes | memoryview) -> None:
        """Take the next of the bytes that are left; raises StoreSpaceError or StoreError.

        Long runs of zeros become holes: whoever makes a disk from it finds them there.
        """
        view = memoryview(data)
        with self._store.writing(self.size):
            for hole, length in runs(view, self.size - self.left):
                if hole:
                    self._skip(length)
                else:
                    _write_all(self.descriptor, view[:length])
                view = view[length:]
                self.left -= length

    def _skip(self, length: int) -> None:
        begin = os.lseek(self.descriptor, length, os.SEEK_CUR) - length
        if begin + length == self.size:
            os.ftruncate(self.descriptor, self.size)
        try:
            punch_hole(self.descriptor, begin, length)  # the room for all of it was allocated
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def rest(self) -> None:
        """Close its file, of which all bytes are there, until `reopen`; raises StoreError."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with self._store.writing(self.size):
                os.close(descriptor)

    def reopen(self) -> None:
        """Open its file for reading; raises OSError."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        self.descriptor = os.open(self._temporary, flags)

    def commit(self, blake3: bytes, sum_: bytes) -> Stored:
        """Give it its name, in the place of whatever had it; raises OSError."""
        self._store._rename(self._temporary, self.hash)
        self._temporary = ""
        return Stored(self.hash, self.size, blake3, True, sum=sum_)

    def abort(self) -> None:
        """Close its file, and forget it unless it was committed; the next start removes what a
        failing disk keeps."""
        descriptor, self.descriptor = self.descriptor, -1
        temporary, self._temporary = self._temporary, ""
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - the hot path


class _NotSupportedError(Exception):
    """This file system allocates only by writing."""


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise _NotSupportedError from None
        raise


def _write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:WRITE_AT_ONCE]) :]


def _buckets(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names only
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if len(name) == 2 and _HEX.issuperset(name))


_libc = ctypes.CDLL(None, use_errno=True)
