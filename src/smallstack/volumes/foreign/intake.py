"""An image as its bytes come: hashed, decompressed, written, at once looked at.

::

    bytes ──► BLAKE3, and the digest to be checked ──► decompressed, or as they are ──► file

A raw disk is then where it belongs; another format lies there to be converted. Nothing is kept in
memory but a few pieces. What comes out of a compressed image waits whenever ``allowed`` bytes are
reached, so that its space can be found first, and fails at ``limit``: a small image may hold more
than any disk has.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from smallstack.images.decompress import MAGIC_LENGTH, Decompressor, form_of
from smallstack.images.errors import CompressedDataError
from smallstack.volumes.errors import DiskImageError
from smallstack.volumes.foreign.formats import (
    HEAD,
    SECTOR,
    DiskFormat,
    FormatError,
    check_head,
    check_whole,
    recognise,
)
from smallstack.volumes.foreign.sparse import SparseFile

DIGESTS: Final = ("sha256", "sha512", "blake3")
_ENOUGH: Final = 1 << 20
"""Bytes of which the first HEAD are in the file by then, not in memory any more."""


class Intake:
    """One image. Blocking, one thread at a time. Methods raise DiskImageError and OSError."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        wanted: DiskFormat | None,
        limit: int,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Into the new file ``path``; ``name`` is what messages call the image.

        ``wanted`` None: the format is told from the content. RAW: every byte is the disk's, also
        those that look compressed. ``limit``: bytes, as they come and unpacked. ``digests``: hex
        by name (DIGESTS), of the bytes as they come.
        """
        self.received = 0
        self.allowed = 0
        """Bytes that may be written by now."""
        self.form = ""
        """How the bytes are compressed."""
        self.format = wanted or DiskFormat.RAW
        self._wanted = wanted
        self._name = name
        self._limit = limit
        self._expected = dict(digests or {})
        self._hashers: dict[str, Any] = {"blake3": blake3()}
        for kind in self._expected:
            self._hashers.setdefault(kind, hashlib.new(kind) if kind != "blake3" else blake3())
        self._started = False
        self._begin = bytearray()
        self._decoder: Decompressor | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._held = b""
        self._told = wanted is DiskFormat.RAW
        self.file = SparseFile(path)

    @property
    def size(self) -> int:
        """Bytes written, unpacked."""
        return self.file.size

    @property
    def digests(self) -> dict[str, str]:
        """Hex of the bytes that came, by name; BLAKE3 is always there."""
        return {kind: hasher.hexdigest() for kind, hasher in self._hashers.items()}

    def feed(self, data: bytes) -> bool:
        """The next bytes. False: `pump` before more of them, once ``allowed`` is raised."""
        assert not self._held
        self.received += len(data)
        self._check_limit(self.received)
        for hasher in self._hashers.values():
            hasher.update(data)
        if not self._started:
            self._begin += data
            if len(self._begin) < MAGIC_LENGTH:
                return True
            data = self._start()
        self._take(data)
        return self.pump()

    def pump(self) -> bool:
        """Write what waits; False: it is not all, ``allowed`` is in the way."""
        try:
            while True:
                if not self._held:
                    self._held = next(self._pieces, b"")
                if not self._held:
                    return True
                self._check_limit(self.size + len(self._held))
                if self.size + len(self._held) > self.allowed:
                    return False
                self.file.write(self._held)
                self._held = b""
                self._look()
        except CompressedDataError as error:
            raise self._refused(str(error)) from None

    @property
    def waiting(self) -> int:
        """Bytes that ``allowed`` has to have at least for the next piece."""
        return self.size + len(self._held)

    def finish(self) -> int:
        """All has come: what `format` says lies in the file. Bytes of its disk; 0: not known yet.

        A raw disk is filled up with zeros to a whole sector.
        """
        if not self._started:
            self._take(self._start())
        written = self.pump()
        assert written, "there is more to come"
        try:
            if self._decoder is not None:
                self._decoder.end()
        except CompressedDataError as error:
            raise self._refused(str(error)) from None
        for kind, expected in self._expected.items():
            found = self._hashers[kind].hexdigest()
            if found != expected.lower():
                raise self._refused(f"its {kind} is {found}, not {expected.lower()}")
        self.file.finish()
        self._look(whole=True)
        if self.size == 0:
            raise self._refused("it is empty")
        if self.format is DiskFormat.RAW:
            self.file.extend(-(-self.size // SECTOR) * SECTOR)
            return self.size
        if self.format is DiskFormat.QCOW2:
            return 0
        try:
            size = check_whole(self.format, self.file.read, self.size)
        except FormatError as error:
            raise self._refused(str(error)) from None
        self._check_limit(size)
        return size

    def close(self) -> None:
        """Let go of the file, which stays."""
        self.file.close()

    def _start(self) -> bytes:
        """The first bytes are there: compressed or not."""
        self._started = True
        first = bytes(self._begin)
        self._begin.clear()
        if self._wanted is not DiskFormat.RAW:
            self.form = form_of(first)
        if self.form:
            self._decoder = Decompressor(self.form)
        return first

    def _take(self, data: bytes) -> None:
        self._pieces = iter((data,)) if self._decoder is None else self._decoder.feed(data)

    def _look(self, *, whole: bool = False) -> None:
        """Tell the format as soon as there is enough to tell it from."""
        if self._told or (not whole and self.size < _ENOUGH):
            return
        self._told = True
        head = self.file.read(0, HEAD)
        try:
            self.format = self._wanted or recognise(head)
            check_head(self.format, head)
        except FormatError as error:
            raise self._refused(str(error)) from None

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise self._refused(
                f"it has over {self._limit} bytes, the most that is taken (--max-image-size)"
            )

    def _refused(self, detail: str) -> DiskImageError:
        return DiskImageError(name=self._name, detail=detail)
