"""Moving to a Unix socket: byte by byte, as whom, and what those get who should not be there."""

import asyncio
import base64
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.client import Client, dial
from smallstack.srpc.errors import AccessDeniedError, ConnectError
from smallstack.srpc.local import COOKIE_SIZE, MAX_ARRIVALS

from .conftest import Certificates, Running, Serve

COOKIE = bytes(range(8))
ENDPOINTS = [framing.TLS_GOB, framing.TLS_JSON, framing.PLAIN_GOB, framing.PLAIN_JSON]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _info(client: Client) -> str:
    request = hypervisor.GetVmInfoRequest(ip_address="198.51.100.1")
    kind = hypervisor.GetVmInfoResponse
    return (await client.request("Hypervisor.GetVmInfo", request, kind)).error


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.path)
async def test_calls_go_on_as_the_same_user(
    serve: Serve, certificates: Certificates, endpoint: framing.Endpoint
) -> None:
    user = certificates.user("alice") if endpoint.tls else None
    async with (
        serve(certificates.server if endpoint.tls else None) as running,
        await dial(running.address, user, endpoints=[endpoint], move_local=True) as client,
    ):
        assert client.conn.tls is None
        for _ in range(3):
            assert await _info(client) == "no VM 198.51.100.1"
        if endpoint.tls:
            with pytest.raises(AccessDeniedError):
                await client.request(
                    "Hypervisor.PowerOff",
                    hypervisor.PowerOffRequest(),
                    hypervisor.PowerOffResponse,
                )
        peer = running.trace.calls[-1].peer
        assert (peer.username, peer.remote_host) == ("alice" if endpoint.tls else "", "127.0.0.1")
        assert running.server.connections == 1


async def test_who_asks_for_no_powers_has_none_there(
    serve: Serve, certificates: Certificates
) -> None:
    root = certificates.user("root", methods=["*.*"])
    async with serve(certificates.server) as running:
        for powers in (True, False):
            async with await dial(
                running.address, root, use_method_powers=powers, move_local=True
            ) as client:
                await _info(client)
                assert running.trace.calls[-1].peer.have_method_access is powers
        await running.server.wait_empty()


async def _json(running: Running) -> Streams:
    reader, writer = await running.plain()
    writer.write(framing.connect_request(framing.PLAIN_JSON))
    await reader.readexactly(len(framing.CONNECTED))
    return reader, writer


async def _offer(streams: Streams, cookie: bytes = COOKIE) -> dict[str, Any]:
    """What the server answers to the first request, which is sent as it was captured."""
    reader, writer = streams
    writer.write(b".LocalUpgradeToUnix\n")
    assert await reader.readexactly(1) == b"\n"
    writer.write(b'{"ClientCookie":"%s"}\n' % base64.b64encode(cookie))
    answer: dict[str, Any] = json.loads(await reader.readline())
    return answer


async def _enter(path: str) -> Streams:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("\0" + path.removeprefix("@"))
    return await asyncio.open_unix_connection(sock=sock)


@asynccontextmanager
async def _unix(path: str) -> AsyncIterator[Streams]:
    reader, writer = await _enter(path)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_byte_by_byte(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = streams = await _json(running)
        offer = await _offer(streams)
        assert list(offer) == ["Error", "ServerCookie", "SocketPathname"]
        assert offer["Error"] == ""
        assert re.fullmatch(rf"@SRPC\.{os.getpid()}(\.[0-9a-f]{{16}})?", offer["SocketPathname"])
        cookie = base64.b64decode(offer["ServerCookie"])
        assert len(cookie) == COOKIE_SIZE
        async with _unix(offer["SocketPathname"]) as (unix_reader, unix_writer):
            unix_writer.write(cookie)
            await unix_reader.readexactly(1)
            writer.write(b'{"SentServerCookie":true}\n')
            assert await reader.readline() == b'{"Error":""}\n'
            assert await unix_reader.readexactly(8) == COOKIE
            unix_writer.write(b"\n")
            assert await unix_reader.readexactly(1) == b"\n"
            unix_writer.write(b"Hypervisor.Nope\n")
            assert await unix_reader.readline() == b"Hypervisor: unknown method: Nope\n"
            assert await reader.read() == b""  # TCP is not needed any more
        await running.server.wait_empty()


async def test_a_cookie_is_good_once_and_for_nobody_else(serve: Serve) -> None:
    async with serve() as running:
        streams = await _json(running)
        offer = await _offer(streams)
        path, cookie = offer["SocketPathname"], base64.b64decode(offer["ServerCookie"])
        async with _unix(path) as (reader, writer):
            writer.write(bytes(8))
            assert await reader.read() == b""
        async with _unix(path) as (first, first_writer):
            first_writer.write(cookie)
            await first.readexactly(1)
            async with _unix(path) as (reader, writer):
                writer.write(cookie)
                assert await reader.read() == b""
            streams[1].write(b'{"SentServerCookie":true}\n')
            assert await first.readexactly(8) == COOKIE


async def test_a_client_that_cannot_stays_where_it_is(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = streams = await _json(running)
        for answer in (b"true", b"false"):
            await _offer(streams)
            writer.write(b'{"SentServerCookie":%s}\n' % answer)  # it never was
            assert await reader.readline() == b'{"Error":"the cookie was not sent"}\n'
        offer = await _offer(streams, b"short")
        assert offer["Error"] == "the cookie has 5 bytes, not 8"
        writer.write(b"\n")
        assert await reader.readexactly(1) == b"\n"


async def test_two_addresses_are_not_local(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, local_addr=("127.0.0.2", 0)
        )
        running.opened.append(writer)
        writer.write(framing.connect_request(framing.PLAIN_JSON))
        await reader.readexactly(len(framing.CONNECTED))
        offer = await _offer((reader, writer))
        assert offer["Error"] == "the connection is not a local one"


async def test_who_does_not_go_on_is_given_up(serve: Serve) -> None:
    async with serve(handshake_timeout=0.2) as running:
        reader, _ = streams = await _json(running)
        offer = await _offer(streams)
        async with _unix(offer["SocketPathname"]) as (silent, _):
            assert await silent.read() == b""
            assert await reader.read() == b""
        await running.server.wait_empty()


async def test_a_crowd_at_the_socket_keeps_nobody_out(serve: Serve) -> None:
    async with serve() as running:
        streams = await _json(running)
        path = (await _offer(streams))["SocketPathname"]
        crowd = [await _enter(path) for _ in range(150)]
        for reader, _ in crowd[: 150 - MAX_ARRIVALS]:
            assert await reader.read() == b""
        async with await dial(running.address, None, move_local=True) as client:
            assert client.conn.remote_host == "127.0.0.1"
            assert await _info(client) == "no VM 198.51.100.1"
        for _, writer in crowd:
            writer.transport.abort()


async def test_a_name_that_is_taken_is_no_obstacle(serve: Serve) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0SRPC.{os.getpid()}")
        async with (
            serve() as running,
            await dial(running.address, None, move_local=True) as client,
        ):
            assert await _info(client) == "no VM 198.51.100.1"


@asynccontextmanager
async def _scripted(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says these lines, one for each that it hears, and what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n")
        writer.write(framing.CONNECTED)
        for answer in answers:
            heard.append(await reader.readline())
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


@pytest.mark.parametrize(
    "path", ["/run/docker.sock", "@", "@SRPC.nobody", "@" + "x" * 200], ids=range(4)
)
async def test_a_server_that_sends_us_elsewhere(path: str) -> None:
    """Only abstract sockets are connected to: the server is not verified by clients."""
    offer = json.dumps({"Error": "", "ServerCookie": "AAECAwQFBgc=", "SocketPathname": path})
    answers = (b"\n", offer.encode() + b"\n", b'{"Error":"then not"}\n', b"\n")
    async with _scripted(*answers) as (address, heard):
        endpoints = [framing.PLAIN_JSON]
        async with await dial(address, None, endpoints=endpoints, move_local=True) as client:
            await client.ping()
        assert heard[2:] == [b'{"SentServerCookie":false}\n', b"\n"]


async def test_a_server_that_does_not_know_the_method() -> None:
    async with _scripted(b"unknown service: \n", b"\n") as (address, heard):
        endpoints = [framing.PLAIN_JSON]
        async with await dial(address, None, endpoints=endpoints, move_local=True) as client:
            await client.ping()
        assert heard == [b".LocalUpgradeToUnix\n", b"\n"]


async def test_somebody_else_at_the_socket_is_found_out() -> None:
    name = f"smallstack-test-{os.getpid()}"

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"\0" + bytes(8))
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0" + name)
    server = await asyncio.start_unix_server(impostor, sock=sock)
    offer = json.dumps({"Error": "", "ServerCookie": "AAECAwQFBgc=", "SocketPathname": "@" + name})
    answers = (b"\n", offer.encode() + b"\n", b'{"Error":""}\n')
    try:
        async with _scripted(*answers) as (address, _):
            with pytest.raises(ConnectError, match="is not this server's"):
                await dial(address, None, endpoints=[framing.PLAIN_JSON], move_local=True)
        await gone.wait()
    finally:
        server.close()
