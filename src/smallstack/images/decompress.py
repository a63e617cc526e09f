"""Reads a compressed stream as what it holds: gzip, xz, bzip2, zstd, or nothing at all.

The form is told from the first bytes, never from a file's name. Memory is bounded whatever the
stream says of itself: an output buffer of one chunk, 192 MiB for xz, windows of 128 MiB for zstd.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Final, Protocol, cast

from smallstack.images.errors import TarError

CHUNK: Final = 1 << 18
XZ_MEMORY: Final = 192 << 20
ZSTD_WINDOW: Final = 128 << 20
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


def decompressed(file: Readable) -> Readable:
    """What the file holds, from its position on. Reading raises TarError for damaged data."""
    first = b""
    while len(first) < 6 and (more := file.read(6 - len(first))):
        first += more
    rest = _Chained(first, file)
    for magic, name in _MAGICS:
        if first.startswith(magic):
            return _Zstd(rest) if name == "zstd" else _Stream(rest, name)
    return rest


class _Chained:
    """Bytes that were read already, then the rest."""

    def __init__(self, first: bytes, file: Readable) -> None:
        self._first = first
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
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
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": _Zlib,
    "xz": _xz,
    "bzip2": bz2.BZ2Decompressor,
}


class _Stream:
    """Streams of one of the standard library's decoders, one behind the other."""

    def __init__(self, source: Readable, name: str) -> None:
        self._source = source
        self._name = name
        self._decoder = _MAKERS[name]()
        self._ended = False

    def read(self, size: int, /) -> bytes:
        while not self._ended:
            if self._decoder.eof:
                self._next()
                continue
            data = b""
            if self._decoder.needs_input:
                data = self._source.read(CHUNK)
                if not data:
                    raise TarError(detail=f"its {self._name} data ends too early")
            try:
                out = self._decoder.decompress(data, min(size, CHUNK))
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise TarError(detail=f"its {self._name} data is damaged: {error}") from None
            if out:
                return bytes(out)
        return b""

    def _next(self) -> None:
        """Go on with a further stream, if there is one; padding of zeros may stand between."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            data = self._source.read(CHUNK)
            if not data:
                self._ended = True
                return
            rest = data.lstrip(b"\0")
        self._source = _Chained(rest, self._source)
        self._decoder = _MAKERS[self._name]()


class _Zstd:
    def __init__(self, source: Readable) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        self._inner = decoder.stream_reader(cast(IO[bytes], source), CHUNK, read_across_frames=True)

    def read(self, size: int, /) -> bytes:
        try:
            return self._inner.read(min(size, CHUNK))
        except self._error as error:
            raise TarError(detail=f"its zstd data is damaged: {error}") from None
