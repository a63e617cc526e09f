"""Streams in pieces of any length: what they hold, and no piece copied over and over."""

import bz2
import gzip
import lzma
import random
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard

from smallstack.images.decompress import CHUNK, Decompressor, form_of

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.ZstdCompressor().compress,
}
NOISE = random.Random(1).randbytes(3 << 19)


def small_streams(pack: Callable[[bytes], bytes], size: int) -> tuple[bytes, bytes]:
    """Streams one behind the other, some ``size`` bytes of them, and what they hold."""
    texts = [NOISE[start : start + 200] for start in range(0, 20_000, 200)]
    packed = b"".join(map(pack, texts))
    count = -(-size // len(packed))
    return packed * count, b"".join(texts) * count


def unpacked(form: str, data: bytes, piece: int) -> bytes:
    decoder = Decompressor(form)
    parts: list[bytes] = []
    for start in range(0, len(data), piece):
        parts += decoder.feed(data[start : start + piece])
    decoder.end()
    return b"".join(parts)


@pytest.mark.parametrize("form", PACK)
def test_any_cut_gives_the_same(form: str) -> None:
    many, told = small_streams(PACK[form], 10_000)
    one = PACK[form](NOISE[:100_000] + bytes(1 << 20))
    assert form_of(one) == form
    for piece in (1, 1023, 1024, 16_384, 16_385, 1 << 20):
        assert unpacked(form, one, piece) == NOISE[:100_000] + bytes(1 << 20)
        assert unpacked(form, many + bytes(500), piece) == told
    assert max(map(len, Decompressor(form).feed(one))) <= CHUNK or form == "zstd"


@pytest.mark.parametrize("form", PACK)
@pytest.mark.parametrize("kind", ["one", "many"])
def test_no_piece_is_copied_as_a_whole(form: str, kind: str) -> None:
    """Copies of all that is left of a piece, turn by turn, would grow with its square."""
    pack = PACK[form]
    data = pack(NOISE) if kind == "one" else small_streams(pack, len(NOISE))[0]
    decoder = Decompressor(form)
    tracemalloc.start()
    try:
        held = 0
        for part in decoder.feed(data):
            held += len(part)
            assert tracemalloc.get_traced_memory()[1] < len(NOISE) // 2
    finally:
        tracemalloc.stop()
    decoder.end()
    assert held
