"""Reads a compressed stream as what it holds: gzip, xz, bzip2, zstd, or nothing at all.

The form is told from the first bytes, never from a file's name. Memory is bounded whatever the
stream says of itself: pieces of one chunk (32 MiB from zstd), 192 MiB for xz, windows of 128 MiB
for zstd.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from smallstack.images.errors import CompressedDataError, TarError

CHUNK: Final = 1 << 18
XZ_MEMORY: Final = 192 << 20
ZSTD_WINDOW: Final = 128 << 20
MAGIC_LENGTH: Final = 6
"""Bytes from which the form is told."""
_SLICE: Final = 1 << 14
"""Bytes that a decoder is given at once: what it leaves of them, at every turn and at the end of
every stream, is copied."""
_ZSTD_SLICE: Final = 1024
"""Of zstd, where nothing else bounds what comes out: a block takes 4 bytes at least and holds
128 KiB at most (RFC 8878, 3.1.1.2)."""
_MAGICS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


class Readable(Protocol):
    """What can be read from, front to back."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; b"" at the end."""


def form_of(first: bytes) -> str:
    """How data that begin so are compressed: gzip, xz, bzip2, zstd; "": not at all."""
    return next((name for magic, name in _MAGICS if first.startswith(magic)), "")


class Decompressor:
    """Streams of one form, one behind the other, fed with pieces of any length."""

    def __init__(self, form: str) -> None:
        """``form`` as `form_of` tells it, not ""."""
        self._form = form
        self._decoder = _MAKERS[form]()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` hold, in pieces; take them all before the next call.

        Raises CompressedDataError.
        """
        size = _ZSTD_SLICE if self._form == "zstd" else _SLICE
        for start in range(0, len(data), size):
            yield from self._feed(data[start : start + size])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data or not self._decoder.needs_input:
            if self._decoder.eof:
                # Padding of zeros may stand between streams, and behind the last.
                data = (self._decoder.unused_data + data).lstrip(b"\0")
                self._decoder = _MAKERS[self._form]()
                self._begun = False
                continue
            if not self._begun:
                data = data.lstrip(b"\0")
                self._begun = bool(data)
            try:
                out = self._decoder.decompress(data, CHUNK)
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise CompressedDataError(form=self._form, detail=f"is damaged: {error}") from None
            data = b""
            if out:
                yield out

    def end(self) -> None:
        """Nothing comes any more. Raises CompressedDataError in the middle of a stream."""
        if self._begun and not self._decoder.eof:
            raise CompressedDataError(form=self._form, detail="ends too early")


def decompressed(file: Readable) -> Readable:
    """What the file holds, from its position on. Reading raises TarError for damaged data."""
    first = b""
    while len(first) < MAGIC_LENGTH and (more := file.read(MAGIC_LENGTH - len(first))):
        first += more
    rest = Chained(first, file)
    form = form_of(first)
    return _Stream(rest, form) if form else rest


class Chained:
    """Bytes that were read already, then the rest."""

    def __init__(self, first: bytes, file: Readable) -> None:
        self._first = first
        self._file = file

    def read(self, size: int, /) -> bytes:
        """See `Readable`."""
        if self._first:
            part, self._first = self._first[:size], self._first[size:]
            return part
        return self._file.read(size)


def _xz() -> Any:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


class _Zlib:
    """zlib's gzip decoder with the interface of the other two."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    """One frame, with the interface of the others."""

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._inner = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        del max_length  # see _ZSTD_SLICE
        try:
            return self._inner.decompress(data)
        except self._error as error:
            raise OSError(str(error)) from None


_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": _Zlib,
    "xz": _xz,
    "bzip2": bz2.BZ2Decompressor,
    "zstd": _Zstd,
}


class _Stream:
    """A compressed file, read."""

    def __init__(self, source: Readable, form: str) -> None:
        self._source = source
        self._decoder = Decompressor(form)
        self._pieces: Iterator[bytes] = iter(())
        self._held = memoryview(b"")
        self._ended = False

    def read(self, size: int, /) -> bytes:
        while not self._held and not self._ended:
            try:
                piece = next(self._pieces, None)
                if piece is not None:
                    self._held = memoryview(piece)
                elif data := self._source.read(CHUNK):
                    self._pieces = self._decoder.feed(data)
                else:
                    self._ended = True
                    self._decoder.end()
            except CompressedDataError as error:
                raise TarError(detail=str(error)) from None
        part, self._held = self._held[:size], self._held[size:]
        return bytes(part)
