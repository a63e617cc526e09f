"""What a cache knows of its objects, in one append-only file that survives a kill at any byte.

A header of 8 bytes, then records of 128 bytes, little-endian::

    u8 kind (1 = added, 2 = dropped), 3 bytes zero, u32 CRC-32 of all the rest,
    u64 size in bytes, u64 where it begins in its pack, u64 number of the pack (0: a file of its
    own), 64 bytes SHA-512, 32 bytes BLAKE3 (all but the SHA-512 zero in a drop)

The order of the records is the order of use, least recent first, as it was when the file was last
compacted. A record that is cut short is the end of the file: it is cut off. A record whose sum
does not match is skipped, and its object counts as not known. The file is rewritten (temporary
name, fsync, rename) once most of it is dead. A file that is no index at all is set aside under
the name ``<file>.bad``.
"""

import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from smallstack.objects.errors import StoreError, StoreSpaceError
from smallstack.objects.record import added
from smallstack.objects.store import FULL, Stored, _write_all
from smallstack.telemetry.errors import describe

_log = logging.getLogger("smallstack.objects")
HEADER: Final = b"SSobj\x02\r\n"
RECORD: Final = struct.Struct("<B3xIQQQ64s32s")
OLD_HEADER: Final = b"SSobj\x01\r\n"
OLD_RECORD: Final = struct.Struct("<B3xIQ64s32s")
"""Of files before there were packs, which are rewritten."""
ADDED: Final = 1
DROPPED: Final = 2
DEAD_AT_LEAST: Final = 4096
"""Records that may be dead before the file is rewritten, however few are alive."""


class Known(NamedTuple):
    """What the index tells of an object: bytes, the BLAKE3 of its content, where it lies."""

    size: int
    blake3: bytes
    pack: int = 0
    """The number of the pack it lies in, 0 when it has a file of its own."""
    offset: int = 0
    """Where it begins in that, in bytes."""


class Index:
    """The file; any number of threads use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd = -1
        self._end = 0
        self._records = 0

    def load(self) -> dict[bytes, Known]:
        """Open the file and read it: objects by digest, least recently used first.

        Raises StoreError and StoreSpaceError.
        """
        with suppress(FileNotFoundError):
            self._temporary().unlink()
        try:
            data = self._open()
            if data.startswith(OLD_HEADER):
                self._rewrite(_parse_old(data))
                data = self.path.read_bytes()
            if not data.startswith(HEADER[: len(data)]):
                _log.warning("%s is not an index of objects: starting a new one", self.path)
                self.close()
                self.path.rename(self.path.with_name(self.path.name + ".bad"))
                data = self._open()
            if len(data) < len(HEADER):
                self._cut(0)
                self._append(HEADER)
                return {}
        except OSError as error:
            raise self._error(error, len(HEADER)) from error
        known = self._parse(data)
        self._cut(len(HEADER) + self._records * RECORD.size)
        return known

    def read(self) -> dict[bytes, Known]:
        """What the file says now, without opening it for good; nothing when there is none.

        Raises StoreError.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._error(error, 0) from error
        if data.startswith(OLD_HEADER):
            return _parse_old(data)
        return self._parse(data) if data.startswith(HEADER) else {}

    def _open(self) -> bytes:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o644)
        return self.path.read_bytes()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def add(self, objects: Iterable[Stored]) -> None:
        """Append what is new; call it once their files are in place. Raises StoreSpaceError."""
        self._append(added(list(objects)))

    def drop(self, hashes: Iterable[bytes]) -> None:
        """Append what goes; call it before their files go. Raises StoreSpaceError."""
        self._append(b"".join(_record(DROPPED, hash_) for hash_ in hashes))

    def worth_compacting(self, alive: int) -> bool:
        """Whether most of the file is about objects that are gone, ``alive`` being those left."""
        return self._records - alive > max(alive, DEAD_AT_LEAST)

    def compact(self, order: Iterable[bytes]) -> None:
        """Rewrite the file without what is dead, in ``order``, least recently used first.

        What ``order`` does not name goes last. Raises StoreSpaceError or StoreError.
        """
        with self._lock:
            try:
                known = self._parse(self.path.read_bytes())
                first = {hash_: known.pop(hash_) for hash_ in order if hash_ in known}
                self._rewrite({**first, **known})
            except OSError as error:
                raise self._error(error, 0) from error

    def _rewrite(self, alive: Mapping[bytes, Known]) -> None:
        """Put a file of these in the place of the one that is open."""
        temporary = self._temporary()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        body = HEADER + b"".join(_added(hash_, known) for hash_, known in alive.items())
        fd = os.open(temporary, flags, 0o644)
        try:
            _write_all(fd, body)
            os.fsync(fd)
            temporary.rename(self.path)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._end, self._records = fd, len(body), len(alive)

    def _parse(self, data: bytes) -> dict[bytes, Known]:
        known: dict[bytes, Known] = {}
        self._records = (len(data) - len(HEADER)) // RECORD.size
        body = memoryview(data)[len(HEADER) : len(HEADER) + self._records * RECORD.size]
        for position, record in enumerate(RECORD.iter_unpack(body)):
            kind, checksum, size, offset, pack, hash_, blake3 = record
            start = position * RECORD.size
            if checksum == _checksum(body[start : start + RECORD.size]):
                known.pop(hash_, None)
                if kind == ADDED:
                    known[hash_] = Known(size, blake3, pack, offset)
        return known

    def _append(self, data: bytes) -> None:
        if not data:
            return
        with self._lock:
            try:
                _write_all(self._fd, data)
            except OSError as error:
                # A record cut short would put every later one out of step.
                self._cut(self._end)
                raise self._error(error, len(data)) from error
            self._end += len(data)
            self._records = (self._end - len(HEADER)) // RECORD.size

    def _cut(self, end: int) -> None:
        os.ftruncate(self._fd, end)
        self._end = end

    def _temporary(self) -> Path:
        return self.path.with_name(self.path.name + "~")

    def _error(self, error: OSError, size: int) -> StoreError | StoreSpaceError:
        if error.errno in FULL:
            return StoreSpaceError(directory=self.path.parent, size=size)
        return StoreError(directory=self.path.parent, detail=describe(error))


def _added(hash_: bytes, known: Known | Stored) -> bytes:
    return _record(ADDED, hash_, known.size, known.offset, known.pack, known.blake3)


def _record(
    kind: int, hash_: bytes, size: int = 0, offset: int = 0, pack: int = 0, blake3: bytes = b""
) -> bytes:
    body = RECORD.pack(kind, 0, size, offset, pack, hash_, blake3)
    return body[:4] + _checksum(body).to_bytes(4, "little") + body[8:]


def _parse_old(data: bytes) -> dict[bytes, Known]:
    known: dict[bytes, Known] = {}
    count = (len(data) - len(OLD_HEADER)) // OLD_RECORD.size
    body = memoryview(data)[len(OLD_HEADER) : len(OLD_HEADER) + count * OLD_RECORD.size]
    for position, (kind, checksum, size, hash_, blake3) in enumerate(OLD_RECORD.iter_unpack(body)):
        start = position * OLD_RECORD.size
        if checksum == _checksum(body[start : start + OLD_RECORD.size]):
            known.pop(hash_, None)
            if kind == ADDED:
                known[hash_] = Known(size, blake3)
    return known


def _checksum(record: bytes | memoryview) -> int:
    """CRC-32 of a record without its own place for it; never 0 for a record of zeros."""
    return zlib.crc32(record[8:], zlib.crc32(record[:4]))
