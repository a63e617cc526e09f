"""The stream under both codecs: TLS in the middle, values and raw bytes interleaved, endings."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from smallstack.proto import imageserver
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.proto.image import Image
from smallstack.srpc import framing
from smallstack.srpc.client import dial
from smallstack.srpc.coder import IMAGE
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import (
    CallError,
    ConnectionClosedError,
    LineTooLongError,
    TlsError,
)
from smallstack.srpc.server import Call
from tests.conftest import Watch

from .conftest import Certificates, Serve


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Connection, Connection]]:
    """Two connected ends on loopback."""
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    class Other(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.set_result(self)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Other, "127.0.0.1", 0)
    _, one = await loop.create_connection(Connection, *server.sockets[0].getsockname()[:2])
    other = await accepted
    try:
        yield one, other
    finally:
        for end in (one, other):
            end.abort()
            await end.wait_closed()
        server.close()


async def _both(one: Awaitable[Any], other: Awaitable[Any]) -> None:
    await asyncio.gather(one, other)


async def test_lines_blocks_and_pieces() -> None:
    async with pair() as (one, other):
        one.write(b"first\nse")
        await one.flush()
        assert await other.read_line() == b"first"
        one.write(b"cond\r\n1234567890rest")
        await one.flush()
        assert await other.read_line() == b"second\r"
        assert await other.read_exactly(4) == b"1234"
        other.unread(b"0")
        assert await other.read_some(3) == b"056"
        assert await other.read_exactly(0) == b""
        one.close()
        assert await other.read_exactly(8) == b"7890rest"
        assert await other.read_some() == b""
        with pytest.raises(ConnectionClosedError, match="3 of 3 bytes are missing"):
            await other.read_exactly(3)
        with pytest.raises(ConnectionClosedError, match="end of the stream"):
            await other.read_line()


async def test_a_line_has_a_bound() -> None:
    async with pair() as (one, other):
        one.write(b"x" * 100 + b"\n" + b"y" * 101 + b"\n")
        await one.flush()
        assert await other.read_line(100) == b"x" * 100
        with pytest.raises(LineTooLongError, match="more than 100 bytes"):
            await other.read_line(100)


async def test_writing_to_who_has_gone() -> None:
    async with pair() as (one, other):
        other.abort()
        await one.peer_gone()
        assert one.is_closed
        with pytest.raises(ConnectionClosedError):
            while True:
                one.write(b"x" * 100_000)
                await one.flush()


async def test_megabytes_both_ways_at_once(certificates: Certificates) -> None:
    data = os.urandom(1 << 16) * 64
    for tls in (False, True):
        async with pair() as (one, other):
            if tls:
                await _both(
                    one.start_tls(certificates.user("alice").context, server_side=False),
                    other.start_tls(certificates.server.context, server_side=True),
                )

            async def send(end: Connection) -> None:
                end.write(data)
                await end.flush()

            async def receive(end: Connection) -> None:
                assert await end.read_exactly(len(data)) == data

            await asyncio.gather(send(one), send(other), receive(one), receive(other))
            one.close()
            assert await other.read_some() == b""


async def test_tls_begins_with_bytes_that_are_here_already(certificates: Certificates) -> None:
    """A client that does not wait for the answer to CONNECT before its ClientHello."""
    async with pair() as (one, other):
        one.write(b"CONNECT\n")
        starting = asyncio.ensure_future(
            one.start_tls(certificates.user("alice").context, server_side=False)
        )
        await other.more()
        while len(other.peek()) < 20:
            await other.more()
        assert await other.read_line() == b"CONNECT"
        await other.start_tls(certificates.server.context, server_side=True)
        await starting
        one.write(b"secret\n")
        await one.flush()
        assert await other.read_line() == b"secret"


async def test_tls_failures_say_why(certificates: Certificates) -> None:
    async with pair() as (one, other):
        one.write(b"GET / HTTP/1.0\r\n\r\n" * 20)
        await one.flush()
        with pytest.raises(TlsError, match="http request"):
            await other.start_tls(certificates.server.context, server_side=True)
    async with pair() as (one, other):
        one.close()
        with pytest.raises(TlsError, match="closed the connection in the handshake"):
            await other.start_tls(certificates.server.context, server_side=True)
    async with pair() as (_, other):
        with pytest.raises(TlsError, match="no answer in 0 s"):
            await other.start_tls(certificates.server.context, server_side=True, timeout=0.05)


@pytest.mark.parametrize("json", [False, True], ids=["gob", "json"])
async def test_values_and_raw_bytes_in_any_pieces(json: bool) -> None:
    """What is sent is cut at every place once; nothing is read too far or too short."""
    sent: list[bytes] = []

    class Sample(Connection):
        def write(self, data: bytes) -> None:
            sent.append(data)

    sample = Sample()
    sample.json = json
    sample.encode(hypervisor.GetVmInfoRequest(ip_address="198.51.100.1"))
    sample.write(b"\nraw")
    sample.encode(hypervisor.GetVmInfoRequest(ip_address="198.51.100.2"))
    sample.write(b"\n")
    stream = b"".join(sent)
    for cut in range(len(stream) + 1):
        conn = Connection()
        conn.json = json
        conn.data_received(stream[:cut])
        asyncio.get_running_loop().call_soon(conn.data_received, stream[cut:])
        first = await conn.decode(hypervisor.GetVmInfoRequest)
        assert await conn.read_exactly(4) == b"\nraw"
        second = await conn.decode(hypervisor.GetVmInfoRequest)
        assert (first.ip_address, second.ip_address) == ("198.51.100.1", "198.51.100.2")
        assert await conn.read_line() == b""
        assert not conn.has_data()


async def test_while_connected() -> None:
    async with pair() as (one, other):

        async def answer() -> int:
            return 42

        assert await one.while_connected(answer()) == 42

        async def fail() -> None:
            raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            await one.while_connected(fail())
        entered = asyncio.Event()
        ended: list[str] = []

        async def long() -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        waiting = asyncio.ensure_future(one.while_connected(long()))
        await entered.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        waiting = asyncio.ensure_future(one.while_connected(long()))
        other.close()
        with pytest.raises(ConnectionClosedError, match="in the middle of a call"):
            await waiting
        assert ended == ["cancelled", "cancelled"]


async def test_the_last_word_reaches_who_is_still_sending(
    serve: Serve, certificates: Certificates
) -> None:
    """The server gives a call up early; the client, sending megabytes, still learns why."""

    async def refuse(call: Call) -> None:
        call.conn.encode(hypervisor.CreateVmResponse(error="image too large"))
        await call.conn.flush()
        raise ConnectionError("over")

    for tls in (False, True):
        async with serve(certificates.server if tls else None) as running:
            running.server.register("Hypervisor", {"CreateVm": refuse})
            client = await dial(running.address, certificates.user("alice") if tls else None)
            async with client.raw("Hypervisor.CreateVm") as conn:
                sending = asyncio.ensure_future(_flood(conn))
                await conn.more()
                for _ in range(100):  # far more than any buffer between the two
                    await asyncio.sleep(0)
                reply = await conn.decode(hypervisor.CreateVmResponse)
                assert reply.error == "image too large"
                sending.cancel()
                conn.abort()


async def _flood(conn: Connection) -> None:
    while True:
        conn.write(b"x" * 65536)
        await conn.flush()
        await asyncio.sleep(0)


async def test_a_broken_request_is_explained_through_the_noise(serve: Serve) -> None:
    async with serve() as running:
        client = await dial(running.address, None)
        with pytest.raises(CallError, match="not valid"):
            async with client.raw("Hypervisor.GetVmInfo") as conn:
                conn.write(b"\x05junk!" + b"x" * 5_000_000)
                flushing = asyncio.ensure_future(conn.flush())
                await client.reply(conn, "Hypervisor.GetVmInfo", hypervisor.GetVmInfoResponse)
                await flushing
        flushing.cancel()
        await client.close()


def _tree(files: int) -> FileSystem:
    builder = FileSystemBuilder()
    places = [builder.add(mode=0o40755) for _ in range(100)]
    for number, place in enumerate(places):
        builder.link(0, b"d%d" % number, place)
    for number in range(files):
        digest = hashlib.sha512(b"%d" % number).digest()
        inode = builder.add(mode=0o100644, size=9, hash=digest)
        builder.link(places[number % 100], b"file%d" % number, inode)
    return builder.build()


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("endpoint", [framing.PLAIN_GOB], ids=["gob"])
async def test_big_images_do_not_hold_the_loop(
    serve: Serve, endpoint: framing.Endpoint, keeps_loop_free: Watch
) -> None:
    tree = await asyncio.to_thread(_tree, 20_000)

    async def get_image(call: Call, request: imageserver.GetImageRequest) -> Any:
        return imageserver.GetImageResponse(image=Image(file_system=tree))

    async def fetch(_number: int) -> None:
        async with serve() as running:
            running.server.register("ImageServer", {"GetImage": get_image})
            async with await dial(running.address, None, endpoints=[endpoint]) as client:
                client.conn.limits = IMAGE
                reply = await client.request(
                    "ImageServer.GetImage",
                    imageserver.GetImageRequest(image_name="x"),
                    imageserver.GetImageResponse,
                )
        assert reply.image is not None
        assert reply.image.file_system is not None
        assert len(reply.image.file_system) == 20_101

    await keeps_loop_free(fetch)
