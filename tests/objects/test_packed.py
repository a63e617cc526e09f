"""Frames of compressed objects, and what a server may not do with them."""

import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard

from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.pages import Pages
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import FetchError, ObjectCorruptError
from smallstack.objects.packed import FRAME, HEADER, PIECE, PackedError, frame_size, pack, unpack
from smallstack.objects.peer import PeerSource
from smallstack.proto.objectserver import (
    GetCompressedObjectsRequest,
    GetCompressedObjectsResponse,
    GetObjectsRequest,
    GetObjectsResponse,
)
from smallstack.srpc.server import Call, Server
from smallstack.telemetry.metrics import Metrics
from tests.objects.sources import digest


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(HEADER, "big") + data


def claiming(size: int) -> bytes:
    """A zstd frame that says it holds so many bytes, and has one of them (RFC 8878, 3.1.1)."""
    return bytes.fromhex("28b52ffd e0") + size.to_bytes(8, "little") + b"\x09\x00\x00x"


@pytest.mark.parametrize("data", [b"x", b"ab" * 5000, os.urandom(PIECE), bytes(PIECE)], ids=len)
def test_there_and_back(data: bytes) -> None:
    packed = pack(data)
    assert frame_size(packed[:HEADER]) == len(packed) - HEADER <= FRAME
    assert unpack(packed[HEADER:], PIECE) == data
    assert unpack(packed[HEADER:], len(data)) == data


@pytest.mark.parametrize(
    ("content", "most", "text"),
    [
        pytest.param(pack(b"x" * 100)[HEADER:], 99, "holds 100 bytes, 99 are", id="too-many"),
        pytest.param(claiming(1 << 40), PIECE, "1099511627776 bytes", id="bomb"),
        pytest.param(claiming(1000), PIECE, "is not valid", id="fewer"),
        pytest.param(
            zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 9),
            PIECE,
            "is not valid",
            id="no-size",
        ),
        pytest.param(pack(b"x")[HEADER:] + b"more", PIECE, "is not valid", id="more-behind"),
        pytest.param(pack(bytes(range(100)))[HEADER:-3], PIECE, "is not valid", id="cut"),
        pytest.param(b"no frame at all", PIECE, "is not valid", id="other"),
        pytest.param(b"", PIECE, "is not valid", id="nothing"),
        pytest.param(pack(b"")[HEADER:], PIECE, "holds 0 bytes", id="empty"),
    ],
)
def test_what_is_refused(content: bytes, most: int, text: str) -> None:
    with pytest.raises(PackedError, match=text) as caught:
        unpack(content, most)
    assert "\n" not in str(caught.value)


def test_lengths_are_bounded() -> None:
    for size in (0, FRAME + 1, (1 << 32) - 1):
        with pytest.raises(PackedError, match=f"a frame of {size} bytes"):
            frame_size(size.to_bytes(HEADER, "big"))


Handler = Callable[[Call], Coroutine[None, None, None]]


@asynccontextmanager
async def serving(**handlers: Handler) -> AsyncIterator[str]:
    server = Server(insecure=True)
    server.register("ObjectServer", handlers)
    pages = Pages(Metrics(), server=server)
    await pages.start()
    listener = Listener(server, pages.factory)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    try:
        yield f"127.0.0.1:{listener.addresses[0][1]}"
    finally:
        await listener.close(grace=1)
        await pages.stop()


CONTENT = b"a line of text\n" * 20_000
OBJECTS = {digest(CONTENT): len(CONTENT)}


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (frame(claiming(1 << 50)), "says that it holds 1125899906842624 bytes"),
        (pack(CONTENT + b"x"), f"{len(CONTENT)} are to come"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (pack(CONTENT)[:-9], "bytes are missing"),
        (pack(CONTENT[:1000]), f"closed the connection {len(CONTENT) - 1000} bytes before the end"),
        (frame(b"garbage"), "is not valid"),
        (b"", f"closed the connection {len(CONTENT)} bytes before the end"),
    ],
)
async def test_a_server_that_lies(tmp_path: Path, sent: bytes, text: str) -> None:
    async def lie(call: Call) -> None:
        await call.conn.decode(GetCompressedObjectsRequest)
        call.conn.encode(GetCompressedObjectsResponse(object_sizes=[len(CONTENT)]))
        call.conn.write(sent)
        await call.conn.flush()
        call.conn.close()

    async with serving(GetCompressedObjects=lie) as address:
        cache = ObjectCache(tmp_path, 1 << 20)
        with pytest.raises(FetchError, match=text) as caught:
            await cache.ensure(OBJECTS, PeerSource.dialling(address, None, "zstd"))
        assert "\n" not in str(caught.value)
        assert cache.used_bytes == 0
        assert list(tmp_path.glob("??/*")) == list((tmp_path / ".incoming").iterdir()) == []
        cache.close()


async def test_what_comes_compressed_is_checked_all_the_same(tmp_path: Path) -> None:
    async def lie(call: Call) -> None:
        await call.conn.decode(GetCompressedObjectsRequest)
        call.conn.encode(GetCompressedObjectsResponse(object_sizes=[len(CONTENT)]))
        call.conn.write(pack(b"!" + CONTENT[1:]))

    async with serving(GetCompressedObjects=lie) as address:
        cache = ObjectCache(tmp_path, 1 << 20)
        with pytest.raises(ObjectCorruptError):
            await cache.ensure(OBJECTS, PeerSource.dialling(address, None, "zstd"))
        assert list(tmp_path.glob("??/*")) == []
        cache.close()


async def test_a_server_without_it_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def get(call: Call) -> None:
        await call.conn.decode(GetObjectsRequest)
        call.conn.encode(GetObjectsResponse(object_sizes=[len(CONTENT)]))
        call.conn.write(CONTENT)

    caplog.set_level("INFO", "smallstack.objects")
    async with serving(GetObjects=get) as address:
        source = PeerSource.dialling(address, None, "zstd")
        cache = ObjectCache(tmp_path, 1 << 20)
        for _ in range(2):
            assert (await cache.ensure(OBJECTS, source)).fetched == 1
            await cache.drop([digest(CONTENT)])
        cache.close()
    told = [record.message for record in caplog.records if "as they are" in record.message]
    assert len(told) == 1
    assert "unknown method: GetCompressedObjects" in told[0]
