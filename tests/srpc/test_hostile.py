"""Peers that mean harm, or are broken: bounded, timed out, and of no effect on others."""

import asyncio
import gc
import os
import socket
import struct
import tracemalloc
from typing import Any

import pytest

from smallstack.daemon.watchdog import watch_callbacks
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.client import dial
from smallstack.srpc.errors import ConnectError, PeerStalledError
from smallstack.srpc.server import Call
from smallstack.srpc.stream import READ_HIGH
from tests.proto.reference_gob import integer, message, structure, text, uint

from .conftest import Certificates, Running, Serve
from .test_gob_hostile import definition, fields

CONNECT = b"CONNECT /_goSRPC_/ HTTP/1.0\n\n"
CONNECT_TLS = b"CONNECT /_go_TLS_SRPC_/ HTTP/1.0\n\n"
INFO = b"Hypervisor.GetVmInfo\n"


async def _works(running: Running, certificates: Certificates | None = None) -> bool:
    user = certificates.user("alice") if certificates else None
    async with await dial(running.address, user) as client:
        reply = await client.request(
            "Hypervisor.GetVmInfo",
            hypervisor.GetVmInfoRequest(ip_address="198.51.100.1"),
            hypervisor.GetVmInfoResponse,
        )
        return reply.error == "no VM 198.51.100.1"


async def _drain(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, in whichever way."""
    data = b""
    try:
        while more := await reader.read(65536):
            data += more
    except ConnectionError:
        pass
    return data


async def _connected(
    running: Running,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await running.plain()
    writer.write(CONNECT)
    assert await reader.readexactly(len(framing.CONNECTED)) == framing.CONNECTED
    return reader, writer


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"CONNECT /none HTTP/1.0\n\n", b"HTTP/1.0 404 Not Found\r\n"),
        (CONNECT_TLS, b"HTTP/1.0 404 Not Found\r\n"),
        (b"COPY /_goSRPC_/ HTTP/1.0\n\n", b"HTTP/1.0 400 Bad Request\r\n"),
        (b"C" + b"x" * framing.MAX_HEAD, b"HTTP/1.0 400 Bad Request\r\n"),
        (b"CONNECT\n\n", b"HTTP/1.0 400 Bad Request\r\n"),
        (b"\x00\x01\x02\n\n", b"HTTP/1.0 400 Bad Request\r\n"),
        (b"GET / HTTP/1.0\n\n", b"HTTP/1.0 404 Not Found\r\n"),
        (b"\x16\x03\x01" + b"\x00" * 600, b""),
        (b"\x16\x03\x01\n\n", b""),
    ],
)
async def test_bad_openings_of_a_plain_server(serve: Serve, sent: bytes, answer: bytes) -> None:
    async with serve(handshake_timeout=0.5, listener_options={"handshake_timeout": 0.5}) as running:
        reader, writer = await running.plain()
        writer.write(sent)
        assert (await _drain(reader)).startswith(answer)
        writer.close()
        assert await _works(running)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"\x16" + os.urandom(3000),
        CONNECT_TLS + b"not TLS at all, but a long line of text\n",
        CONNECT_TLS + b"\x16\x03\x01\xff\xff" + b"\x01" * 70000,
        CONNECT_TLS + b"\x15\x03\x01\x00\x02\x02\x32",
    ],
    ids=range(5),
)
async def test_tls_garbage(serve: Serve, certificates: Certificates, sent: bytes) -> None:
    async with serve(certificates.server) as running:
        reader, writer = await running.plain()
        writer.write(sent)
        await _drain(reader)
        writer.close()
        await running.server.wait_empty()
        assert await _works(running, certificates)


async def test_silence_and_slow_openings_end(serve: Serve, certificates: Certificates) -> None:
    options = {"handshake_timeout": 0.2}
    async with serve(certificates.server, listener_options=options, **options) as running:
        silent, _ = await running.plain()
        slow, writer = await running.plain()
        writer.write(CONNECT_TLS[:20])
        page, page_writer = await running.plain()
        page_writer.write(b"GET / HT")
        assert await _drain(silent) == b""
        assert (await _drain(slow)).startswith(b"HTTP/1.0 408 Request Timeout\r\n")
        assert await _drain(page) == b""
        writer.close()
        await running.server.wait_empty()


async def test_half_done_tls_ends(
    serve: Serve, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallstack.srpc.stream.Stream.start_tls.__defaults__", (0.2,))
    async with serve(certificates.server) as running:
        for sent in (CONNECT_TLS + b"\x16\x03\x01\x05\x00\x01", b"\x16\x03\x01\x05\x00\x01"):
            reader, writer = await running.plain()
            writer.write(sent)
            await _drain(reader)
            writer.close()
        await running.server.wait_empty()


async def test_giant_method_line(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = await _connected(running)
        writer.write(b"x" * 10_000_000)
        answer = await _drain(reader)
        assert answer in {b"", b"the peer sent a line of more than 1024 bytes\n"}
        writer.close()
        await running.server.wait_empty()


async def test_stalling_in_the_middle_ends_the_connection(serve: Serve) -> None:
    async with serve(stall_timeout=0.2) as running:
        for sent, answer in (
            (b"Hypervisor.Get", b""),
            (INFO, b"\n"),
            (INFO + b"\x2b\x7f\x03", b"\n"),
            (b"Hypervisor.CreateVm\n" + b"\x7f", b"\n"),
        ):
            reader, writer = await _connected(running)
            writer.write(sent)
            assert await _drain(reader) == answer
            writer.close()
        await running.server.wait_empty()


async def test_who_sends_byte_by_byte_is_given_up(serve: Serve) -> None:
    """Never silent for long, yet a line, a request or a block takes for ever."""
    async with serve(stall_timeout=0.2) as running:
        for sent, answer in (
            (b"", b""),
            (INFO + b"\x60", b"\n"),
            (b"Hypervisor.CreateVm\n\x60", b"\n"),
        ):
            reader, writer = await _connected(running)
            writer.write(sent)
            end = asyncio.create_task(_drain(reader))
            while not end.done():
                writer.write(b"\x01")
                await asyncio.wait((end,), timeout=0.02)
            assert end.result() == answer
            writer.close()
        await running.server.wait_empty()


async def test_a_flood_of_pings_leaves_others_their_turn(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = await _connected(running)
        other, pinging = await _connected(running)
        with watch_callbacks() as stretches:
            writer.write(b"\n" * 200_000)
            for _ in range(20):
                pinging.write(b"\n")
                assert await other.readexactly(1) == b"\n"
            assert await reader.readexactly(200_000) == b"\n" * 200_000
        assert [s for s in stretches if "serve" in s.where] == []
        writer.close()
        pinging.close()


async def test_a_flood_of_unknown_methods_leaves_nothing(serve: Serve) -> None:
    async with serve() as running:
        reader, writer = await _connected(running)

        async def flood(first: int, count: int) -> None:
            services = [b"Service%d" % number for number in range(first, first + count)]
            writer.write(b"".join(service + b".Method\n" for service in services))
            for service in services:
                assert await reader.readline() == b"unknown service: " + service + b"\n"

        await flood(0, 1000)
        tracemalloc.start()
        try:
            for number in range(1, 11):
                await flood(1000 * number, 1000)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 200_000
        finally:
            tracemalloc.stop()
        writer.close()
        await running.server.wait_empty()


async def test_an_idle_connection_is_not_a_stalling_one(serve: Serve) -> None:
    async with serve(stall_timeout=0.2) as running:
        reader, writer = await _connected(running)
        other, stalling = await _connected(running)
        stalling.write(b"Hypervisor.Get")
        # Given up after the time for which the other one has been silent as well, and longer.
        await _drain(other)
        stalling.close()
        writer.write(b"\n")
        assert await reader.readexactly(1) == b"\n"
        writer.close()


async def test_who_reads_nothing_is_given_up(serve: Serve) -> None:
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def flood(call: Call) -> None:
        try:
            while True:
                call.conn.write(b"x" * 65536)
                await call.conn.flush()
        except BaseException as error:
            told.set_result(error)
            raise

    async with serve(stall_timeout=0.3) as running:
        running.server.register("Hypervisor", {"GetUpdates": flood})
        with socket.create_connection(("127.0.0.1", running.port)) as sock:
            sock.sendall(CONNECT + b"Hypervisor.GetUpdates\n")
            assert isinstance(await told, PeerStalledError)
        await running.server.wait_empty()


async def test_a_slow_reader_that_goes_on_is_not(serve: Serve) -> None:
    size = 4_000_000

    async def send(call: Call) -> None:
        call.conn.write(b"x" * size)
        await call.conn.flush()

    async with serve(stall_timeout=0.5) as running:
        running.server.register("Hypervisor", {"GetUpdates": send})
        reader, writer = await _connected(running)
        writer.write(b"Hypervisor.GetUpdates\n")
        got = 0
        while got < size:
            got += len(await reader.read(20_000))
            await asyncio.sleep(0.001)
        assert got >= size
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x05hello",
        b"\xf8\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xfc\x7f\xff\xff\xff",
        bytes(64),
        b"\x2b\x7f\x03\x01\x01\x10GetVmInfoRequest" + b"\xff" * 26,
        b"".join(definition(65 + n, elem=integer(5)) for n in range(600)),
        b"".join(definition(65 + n, elem=integer(66 + n)) for n in range(100))
        + message(integer(65) + b"\0" + b"\1" * 100),
    ],
    ids=range(7),
)
async def test_broken_gob_is_told_and_ends_the_connection(
    serve: Serve, request_bytes: bytes
) -> None:
    async with serve() as running:
        reader, writer = await _connected(running)
        writer.write(INFO + request_bytes)
        answer = await _drain(reader)
        assert answer.startswith(b"\nthe peer sent a gob stream that is not valid: ")
        assert answer.count(b"\n") == 2
        assert answer.endswith(b"\n")
        writer.close()
        assert await _works(running)


async def test_a_value_in_thousands_of_messages_leaves_others_their_turn(serve: Serve) -> None:
    """A list of values of an unknown interface, each with a new type: a message for every one."""
    unknown = definition(66, elem=integer(8)) + definition(65, fields=fields(("Unknown", 66)))
    count = 400
    parts = [integer(65) + b"\1" + uint(count)]
    for number in range(count):
        parts[-1] += text(f"T{number}")
        kind = structure(None, structure(structure(text("T"), integer(100 + number)), integer(5)))
        parts[-1] += integer(-100 - number) + kind
        parts.append(integer(100 + number) + uint(2) + b"\0\0")
    stream = unknown + b"".join(message(part) for part in [*parts[:-1], parts[-1] + b"\0"])
    async with serve() as running:
        reader, writer = await _connected(running)
        with watch_callbacks() as stretches:
            writer.write(INFO + stream)
            assert await reader.readexactly(2) == b"\n\n"
        assert [s for s in stretches if "serve" in s.where] == []
        writer.close()


async def test_broken_json_is_told(serve: Serve) -> None:
    async with serve() as running:
        for sent in (b'{"IpAddress": 5}\n', b"[" * 100_000, b'{"a"}\n'):
            reader, writer = await running.plain()
            writer.write(b"CONNECT /_SRPC_/unsecured/JSON HTTP/1.0\n\n")
            await reader.readexactly(len(framing.CONNECTED))
            writer.write(INFO + sent)
            answer = await _drain(reader)
            assert answer in {b""} or answer.startswith(b"\nthe peer sent JSON that is not valid: ")
            writer.close()
        await running.server.wait_empty()


async def test_hundreds_of_idle_connections_change_nothing(
    serve: Serve, certificates: Certificates
) -> None:
    async with serve(certificates.server) as running:
        crowd = [await running.plain() for _ in range(300)]
        for _, writer in crowd[:150]:
            writer.write(CONNECT_TLS[:9])
        assert await _works(running, certificates)
        assert running.server.connections >= 300
        for _, writer in crowd:
            writer.close()
        await running.server.wait_empty()


async def test_unfinished_handshakes_push_each_other_out(serve: Serve) -> None:
    async with serve(max_handshakes=10) as running:
        crowd = [await running.plain() for _ in range(30)]
        for reader, _ in crowd[:20]:
            assert await _drain(reader) == b""
        assert await _works(running)
        for _, writer in crowd:
            writer.close()


async def test_too_many_connections_are_turned_away(serve: Serve) -> None:
    async with serve(max_connections=2) as running:
        first = await dial(running.address, None)
        async with await dial(running.address, None):
            with pytest.raises(ConnectError):
                await dial(running.address, None)
        await first.close()
        await running.server.wait_empty()
        assert await _works(running)


async def test_resets_at_every_moment(serve: Serve, certificates: Certificates) -> None:
    """A peer that resets after any prefix of a conversation leaves nothing behind."""
    async with serve(certificates.server) as running:
        for cut in range(0, len(CONNECT_TLS) + 1, 5):
            sock = socket.create_connection(("127.0.0.1", running.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(CONNECT_TLS[:cut])
            sock.close()
        await asyncio.sleep(0)
        assert await _works(running, certificates)
        await running.server.wait_empty()


async def test_reading_pauses_when_a_handler_does_not_read(serve: Serve) -> None:
    held: list[Any] = []
    full, release = asyncio.Event(), asyncio.Event()

    async def ignore(call: Call) -> None:
        held.append(call.conn)
        while len(call.conn.peek()) <= READ_HIGH:
            await call.conn.more()
        full.set()
        await release.wait()

    async with serve() as running:
        running.server.register("Hypervisor", {"GetUpdates": ignore})
        _, writer = await _connected(running)
        writer.write(b"Hypervisor.GetUpdates\n" + b"x" * 30_000_000)
        await full.wait()
        assert await _works(running)  # the loop has had many a turn in which to read more
        assert writer.transport.get_write_buffer_size() > 10_000_000
        assert len(held[0].peek()) <= 2 * READ_HIGH
        writer.transport.abort()
        release.set()


async def test_shutting_down_waits_for_calls_and_no_longer(serve: Serve) -> None:
    ended: list[str] = []
    entered, release = asyncio.Event(), asyncio.Event()

    async def polite(call: Call) -> None:
        entered.set()
        await release.wait()
        ended.append("polite")

    async def stubborn(call: Call) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stubborn")

    for method, handler, grace in (
        ("CreateVm", polite, 30.0),
        ("CreateVm", stubborn, 0.1),
        ("GetUpdates", stubborn, 3600.0),
    ):
        async with serve() as running:
            running.server.register("Hypervisor", {method: handler})
            idle, _ = await _connected(running)
            reader, writer = await _connected(running)
            writer.write(f"Hypervisor.{method}\n".encode())
            await entered.wait()
            entered.clear()
            closing = asyncio.create_task(running.listener.close(grace))
            assert await _drain(idle) == b""
            with pytest.raises((ConnectError, OSError)):
                await dial(running.address, None)
            release.set()
            await closing
            assert await _drain(reader) == b"\n"
    assert ended == ["polite", "stubborn", "stubborn"], "what has no end is not waited for"
