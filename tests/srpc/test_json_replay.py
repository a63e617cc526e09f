"""JSON sessions captured from another implementation, replayed over live connections in both roles.

What was sent is sent again as it was recorded, piece by piece; what comes is compared in every
field. One answer differs on purpose: the captured server swallows a call that was sent ahead and
takes the line feed behind its object for a ping; ours answers the call.
"""

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from smallstack.daemon.listener import Listener, bind
from smallstack.proto.hypervisor.every import CreateVmRequest, ListVMsResponse
from smallstack.proto.methods import METHODS, Shape
from smallstack.proto.srpc import LocalUpgradeToUnixResponseOne
from smallstack.srpc import framing
from smallstack.srpc.client import Client, dial
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import CallError
from smallstack.srpc.json_coder import Decoder
from smallstack.srpc.server import Call as ServerCall
from smallstack.srpc.server import Server
from tests.srpc.speaker import speaking
from tests.srpc.test_gob_captures import CONVERSATIONS
from tests.srpc.test_json_captures import SESSIONS, VECTORS

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]
SWALLOWED = {"json-createvm.log": ListVMsResponse()}
"""By session: what the captured server should have answered to its last call."""
UPGRADE = framing.UPGRADE.decode()


class Event(NamedTuple):
    """Bytes one way; ``value`` is the object in them, behind ``line``."""

    from_client: bool
    data: bytes
    line: bytes
    value: Any


def events(name: str) -> Iterator[Event]:
    """What was recorded, without CONNECT and its answer."""
    values = iter(SESSIONS[name])
    for text in (VECTORS / name).read_text().splitlines():
        match = re.fullmatch(r"([CS])->[CS] .*?(b'.*')", text)
        assert match, text
        data = ast.literal_eval(match[2])
        if data.startswith((b"CONNECT ", b"HTTP/")):
            continue
        line, brace, _ = data.partition(b"{")
        yield Event(match[1] == "C", data, line, next(values)[1] if brace else None)


def serving(name: str) -> Server:
    """A server whose handlers answer as the captured one did."""
    server = Server(insecure=True)
    answers = [event.value for event in events(name) if not event.from_client and event.value]
    answers += [SWALLOWED[name]] if name in SWALLOWED else []

    async def reply(_call: ServerCall, _request: Any) -> Any:
        return answers.pop(0)

    async def create(call: ServerCall) -> None:
        await call.conn.decode(CreateVmRequest)
        while not answers[0].final:
            call.conn.encode(answers.pop(0))
            await call.conn.flush()
        call.conn.encode(answers.pop(0))

    for short in ("ListVMs", "GetCapacity", "GetVmInfo"):
        server.register("Hypervisor", {short: reply})
    server.register("Hypervisor", {"CreateVm": create})
    return server


@pytest.mark.parametrize("name", SESSIONS)
async def test_our_server_answers_a_captured_client(name: str) -> None:
    listener = Listener(serving(name))
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    loop = asyncio.get_running_loop()
    _, conn = await loop.create_connection(Connection, *listener.addresses[0])
    try:
        conn.write(f"CONNECT {framing.PLAIN_JSON.path} HTTP/1.0\n\n".encode())
        await conn.flush()
        assert await conn.read_exactly(len(framing.CONNECTED)) == framing.CONNECTED
        conn.json = True
        for event in events(name):
            if event.from_client:
                conn.begin_call()
                conn.write(event.data)
                await conn.flush()
            else:
                await check_answer(conn, event)
        if name in SWALLOWED:
            assert await conn.decode(ListVMsResponse) == SWALLOWED[name]
    finally:
        conn.abort()
        await listener.close()


async def check_answer(conn: Connection, event: Event) -> None:
    assert await conn.read_exactly(len(event.line)) == event.line
    if event.value is None:
        return
    value = await conn.decode(type(event.value))
    if isinstance(value, LocalUpgradeToUnixResponseOne):
        assert (value.error, len(value.server_cookie)) == ("", 8)
        assert value.socket_pathname.startswith("@")
        return
    assert value == event.value


@asynccontextmanager
async def captured_server(name: str) -> AsyncIterator[tuple[tuple[str, int], bytearray]]:
    """A server that says what was captured, in turn; its address, and what it heard."""
    heard = bytearray()

    async def speak(conn: Connection) -> None:
        while (head := framing.parse_request_head(conn.peek())) is None:
            await conn.more()
        assert head.path == framing.PLAIN_JSON.path
        conn.skip(head.size)
        conn.write(framing.CONNECTED)
        for event in events(name):
            if not event.from_client:
                conn.write(event.data)

    async with speaking(speak, heard) as address:
        yield address, heard


@pytest.mark.parametrize("name", SESSIONS)
async def test_our_client_understands_a_captured_server(name: str) -> None:
    recorded = list(events(name))
    if name in SWALLOWED:  # our client waits for the answer that never came
        recorded = recorded[: -len(["call", "accepted", "request", "ping"])]
    async with (
        captured_server(name) as (address, heard),
        await dial(address, None, endpoints=[framing.PLAIN_JSON]) as client,
    ):
        await repeat(client, recorded)
    rest = bytes(heard)
    for event in recorded:
        if not event.from_client:
            continue
        if event.value is None:
            sent = b"\n" if event.data == b"\r\n" else event.data  # our client has one kind of ping
            assert rest.startswith(sent)
            rest = rest[len(sent) :]
            continue
        decoder = Decoder()
        decoder.feed(rest)
        assert decoder.decode(type(event.value)) == event.value
        rest = decoder.take_rest().removeprefix(b"\n")
    assert rest == b""


async def repeat(client: Client, recorded: list[Event]) -> None:
    """Make the recorded calls, and check every answer."""
    steps = iter(recorded)
    for event in steps:
        assert event.from_client
        method = event.data.decode().strip()
        if not method:
            await client.ping()
            assert next(steps).data == b"\n"
        elif method not in METHODS:
            with pytest.raises(CallError) as caught:
                await client.request(method, None, ListVMsResponse)
            assert caught.value.text == next(steps).data.decode().strip()
        else:
            assert next(steps).data == b"\n"
            await call(client, method, next(steps).value, steps)


async def call(client: Client, method: str, request: Any, steps: Iterator[Event]) -> None:
    if METHODS[method].shape is Shape.REQUEST_REPLY:
        expected = next(steps).value
        assert await client.request(method, request, type(expected)) == expected
        return
    async with client.raw(method) as conn:
        conn.encode(request)
        await conn.flush()
        while True:
            expected = next(steps).value
            assert await conn.decode(type(expected)) == expected
            if method == UPGRADE or expected.final:
                return


def test_every_capture_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name for path in VECTORS.iterdir() if path.suffix in {".bin", ".log"}}
    gob = {f"{name}.{way}.bin" for name in CONVERSATIONS for way in ("c2s", "s2c")}
    assert files == gob | set(SESSIONS)
    with capsys.disabled():
        print(
            f"\ncaptures replayed in both roles: {len(files)} files, {len(CONVERSATIONS)} gob and "
            f"{len(SESSIONS)} JSON conversations"
        )
