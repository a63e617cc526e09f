"""Servers that lie, stall and dribble: over real connections, each ends in one clear line."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import pytest

from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import FetchError
from smallstack.objects.peer import PeerSource
from smallstack.objects.source import DRIBBLE, Reader
from smallstack.proto.objectserver import GetObjectsRequest, GetObjectsResponse
from smallstack.srpc.server import Call
from smallstack.telemetry.errors import SmallStackError
from tests.objects.disk import objects_on_disk
from tests.objects.sources import digest
from tests.objects.test_packed import serving

ONE, TWO = b"one " * 1000, b"two " * 2000
WANTED = {digest(ONE): len(ONE), digest(TWO): len(TWO)}


def answer(
    sizes: Sequence[int], data: bytes, text: str = ""
) -> Callable[[Call], Coroutine[None, None, None]]:
    async def get(call: Call) -> None:
        await call.conn.decode(GetObjectsRequest)
        call.conn.encode(GetObjectsResponse(response_string=text, object_sizes=list(sizes)))
        call.conn.write(data)
        await call.conn.flush()
        call.conn.close()

    return get


SIZES = [len(ONE), len(TWO)]


@pytest.mark.parametrize(
    ("sizes", "data", "said", "text"),
    [
        (SIZES[:1], ONE, "", "it sent 1 sizes for 2 objects"),
        ([*SIZES, 9], ONE + TWO, "", "it sent 3 sizes for 2 objects"),
        ([1 << 62, len(TWO)], ONE + TWO, "", "has 4611686018427387904 bytes instead of 4000"),
        ([0, 0], b"", "", "has 0 bytes instead of 4000"),
        (SIZES, b"x" + ONE + TWO, "", "is corrupt, its content has the digest"),
        (SIZES, ONE[:-1], "", "it closed the connection 8001 bytes before the end"),
        (SIZES, ONE + TWO[:-1], "", "it sent 2 sizes for 1 objects"),  # asked for the rest
        ([], b"", "two\nlines\x1b[2J and " + "much " * 1000, r"two lines.\[2J and much"),
    ],
    ids=["fewer", "more", "huge", "empty", "shifted", "cut-early", "cut-late", "shouting"],
)
async def test_lies(
    tmp_path: Path, sizes: Sequence[int], data: bytes, said: str, text: str
) -> None:
    async with serving(GetObjects=answer(sizes, data, said)) as address:
        cache = ObjectCache(tmp_path, 1 << 20)
        with pytest.raises(SmallStackError, match=text) as caught:
            await cache.ensure(WANTED, PeerSource.dialling(address, None))
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()
        kept = {hash_ for hash_ in WANTED if hash_ in cache}
        assert objects_on_disk(cache) == kept
        for content in (ONE, TWO):
            if digest(content) in kept:
                assert b"".join(cache.place(digest(content)).read()) == content
        assert list((tmp_path / ".incoming").iterdir()) == []
        assert cache._reserved_bytes == 0
        assert cache._claims == []
        cache.close()


async def test_no_answer_at_all(tmp_path: Path) -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def silent(call: Call) -> None:
        await call.conn.decode(GetObjectsRequest)
        asked.set()
        await over.wait()

    async with serving(GetObjects=silent) as address:
        cache = ObjectCache(tmp_path, 1 << 20, answer_seconds=0.05)
        with pytest.raises(FetchError, match=r"it did not answer for 0\.05 s"):
            await cache.ensure(WANTED, PeerSource.dialling(address, None))
        over.set()
        cache.close()


class Dribbling:
    """A byte each time, half a minute later by the clock of the test."""

    def __init__(self, piece: int) -> None:
        self.sizes = [1 << 20]
        self.now = 0.0
        self._piece = piece

    def clock(self) -> float:
        return self.now

    async def read(self, limit: int) -> bytes:
        self.now += 25
        return bytes(min(limit, self._piece))


async def test_who_dribbles_is_given_up() -> None:
    stream = Dribbling(1)
    reader = Reader(stream, "the server", 60, stream.clock)
    left = 1 << 20
    with pytest.raises(FetchError, match=r"the server: it sent 3 bytes in 75 s"):
        while left:
            left -= len(await reader.read(left, left))


@pytest.mark.parametrize("left", [DRIBBLE * 10, 2])
async def test_who_is_only_slow_is_not(left: int) -> None:
    stream = Dribbling(DRIBBLE // 2 if left > 2 else 1)
    reader = Reader(stream, "the server", 60, stream.clock)
    while left:
        left -= len(await reader.read(left, left))
