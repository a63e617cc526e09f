"""Conversations captured from other implementations, replayed over live connections in both roles.

Our server gets a captured client's bytes, and every value it answers is the captured one; our
client hears a captured server, understands every value, and what it has sent by then is what the
captured client sent, byte for byte up to the numbering of type ids.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from smallstack.daemon.listener import Listener, bind
from smallstack.proto.methods import METHODS, Shape
from smallstack.srpc import framing
from smallstack.srpc.client import dial
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import AccessDeniedError
from smallstack.srpc.server import Call as ServerCall
from smallstack.srpc.server import Server
from tests.proto.reference_gob import renumber
from tests.srpc.speaker import speaking
from tests.srpc.test_gob_captures import (
    CONVERSATIONS,
    VECTORS,
    Call,
    Conversation,
    captured_requests,
    in_order,
    requests,
)

from .conftest import Certificates

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]


def _endpoint(conversation: Conversation) -> framing.Endpoint:
    found = framing.find_endpoint(conversation.endpoint)
    assert found is not None
    return found


def _serving(conversation: Conversation, certificates: Certificates) -> tuple[Server, list[Any]]:
    """A server whose handlers answer as the captured one did, and the requests it sees."""
    secure = _endpoint(conversation).tls
    server = Server(certificates.server if secure else None, insecure=not secure)
    seen: list[Any] = []
    left = list(conversation.calls)

    async def reply(call: ServerCall, request: Any) -> Any:
        seen.append(request)
        return left.pop(0).replies[0]

    async def raw(call: ServerCall) -> None:
        said = left.pop(0)
        if said.request is not None:
            seen.append(await call.conn.decode(type(said.request)))
        for value in said.replies:
            call.conn.encode(value)
            await call.conn.flush()
        call.conn.write(said.raw + said.text)

    for said in conversation.calls:
        method = METHODS[said.method]
        handler = reply if method.shape is Shape.REQUEST_REPLY else raw
        server.register(method.service, {method.short_name: handler})
    return server, seen


def _without_mapping(request: Any) -> Any:
    """IPv4 addresses sent in 16 bytes arrive in their short form."""
    if getattr(request, "ip_address", "").startswith("::ffff:"):
        request = type(request)(ip_address=request.ip_address.removeprefix("::ffff:"))
    return request


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_our_server_answers_a_captured_client(name: str, certificates: Certificates) -> None:
    conversation = CONVERSATIONS[name]
    captured = (VECTORS / f"{name}.c2s.bin").read_bytes()
    server, seen = _serving(conversation, certificates)
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    loop = asyncio.get_running_loop()
    _, conn = await loop.create_connection(Connection, *listener.addresses[0])
    try:
        head, _, rest = captured.partition(b"\n\n")
        conn.write(head + b"\n\n")
        await conn.flush()
        assert await conn.read_exactly(len(framing.CONNECTED)) == framing.CONNECTED
        if _endpoint(conversation).tls:
            methods = ["ImageServer.*", "ObjectServer.*", "Hypervisor.UpdateSubnets"]
            user = certificates.user("replayer", methods=methods)
            await conn.start_tls(user.context, server_side=False)
        conn.write(rest)
        await conn.flush()
        for call in conversation.calls:
            await _check_answer(conn, call)
        assert not conn.has_data()
    finally:
        conn.abort()
        await listener.close()
    assert seen == [_without_mapping(c.request) for c in conversation.calls if c.request]


async def _check_answer(conn: Connection, call: Call) -> None:
    conn.begin_call()
    assert (await conn.read_line()).decode() == call.refused
    if call.refused:
        return
    if METHODS[call.method].shape is Shape.REQUEST_REPLY:
        assert await conn.read_line() == b""
    for reply in call.replies:
        assert await conn.decode(type(reply)) == reply
    raw = call.raw + call.text
    assert await conn.read_exactly(len(raw)) == raw


@asynccontextmanager
async def _captured_server(
    name: str, conversation: Conversation, certificates: Certificates
) -> AsyncIterator[tuple[tuple[str, int], bytearray]]:
    """A server that says what was captured, whatever it hears; its address, and what it heard."""
    captured = (VECTORS / f"{name}.s2c.bin").read_bytes()
    rest = captured.removeprefix(framing.CONNECTED)
    assert rest != captured
    heard = bytearray()

    async def speak(conn: Connection) -> None:
        while (head := framing.parse_request_head(conn.peek())) is None:
            await conn.more()
        heard.extend(conn.peek()[: head.size])
        conn.skip(head.size)
        conn.write(framing.CONNECTED)
        await conn.flush()
        if _endpoint(conversation).tls:
            await conn.start_tls(certificates.server.context, server_side=True)
        conn.write(rest)

    async with speaking(speak, heard) as address:
        yield address, heard


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_our_client_understands_a_captured_server(
    name: str, certificates: Certificates
) -> None:
    conversation = CONVERSATIONS[name]
    endpoint = _endpoint(conversation)
    async with _captured_server(name, conversation, certificates) as (address, heard):
        credentials = certificates.user("alice") if endpoint.tls else None
        async with await dial(address, credentials) as client:
            for call in conversation.calls:
                if call.refused:
                    with pytest.raises(AccessDeniedError):
                        async with client.raw(call.method):
                            pass
                elif METHODS[call.method].shape is Shape.REQUEST_REPLY:
                    kind = type(call.replies[0])
                    assert await client.request(call.method, call.request, kind) == call.replies[0]
                else:
                    async with client.raw(call.method) as conn:
                        conn.encode(call.request)
                        await conn.flush()
                        for reply in call.replies:
                            assert await conn.decode(type(reply)) == reply
                        raw = call.raw + call.text
                        assert await conn.read_exactly(len(raw)) == raw
    ours = requests(bytes(heard), conversation)
    for call, sent, theirs in zip(conversation.calls, ours, captured_requests(name), strict=True):
        if call.request is not None:
            assert renumber(in_order(sent, call)) == renumber(theirs)
