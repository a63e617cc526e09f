"""A whole conversation with the RPC server, as a peer on the network may hold it.

The first byte says in what pieces the rest arrives, and how far the conversation has come:
before CONNECT, behind it in gob, or behind it in JSON. Methods of every shape are there.
"""

import asyncio
import logging
from typing import Any

from smallstack.proto.methods import METHODS, Shape
from smallstack.srpc import framing
from smallstack.srpc.connection import Connection
from smallstack.srpc.server import Call, Server

_STARTS = (
    b"",
    framing.connect_request(framing.PLAIN_GOB),
    framing.connect_request(framing.PLAIN_JSON),
)
_SECONDS = 20


class _Transport(asyncio.Transport):
    """One end of a connection whose other end takes everything."""

    def __init__(self, conn: Connection) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", 6976)})
        self._conn = conn
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert len(data) > 0

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._conn.connection_lost, None)

    abort = close


class _Alarm(logging.Handler):
    """What the server calls its own failure is one of this target."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage()) from (record.exc_info or (None, None))[1]


async def _answer(call: Call, _request: Any) -> Any:
    assert call.method.response is not None
    return call.method.response()


async def _read(call: Call) -> None:
    if call.method.request is not None:
        await call.conn.decode(call.method.request)
    while len(await call.conn.read_some()) > 3:
        pass


def _server() -> Server:
    server = Server(insecure=True)
    for method in METHODS.values():
        if method.service:
            answers = method.shape is Shape.REQUEST_REPLY and None not in (
                method.request,
                method.response,
            )
            handler: Any = _answer if answers else _read
            server.register(method.service, {method.short_name: handler})
    return server


_runner = asyncio.Runner()
_kept: list[Server] = []


async def _converse(start: bytes, data: bytes, size: int) -> None:
    if not _kept:
        log = logging.getLogger("smallstack.srpc")
        log.setLevel(logging.ERROR)
        log.addHandler(_Alarm())
        logging.getLogger("smallstack.audit").setLevel(logging.ERROR)
        _kept.append(_server())
    server = _kept[0]
    conn = Connection()
    transport = _Transport(conn)
    conn.connection_made(transport)
    assert server.admit(conn)
    serving = asyncio.create_task(server.serve(conn))
    for piece in (start, *(data[at : at + size] for at in range(0, len(data), size))):
        if piece and not transport.closed:
            conn.data_received(piece)
            await asyncio.sleep(0)
    if not transport.closed:
        conn.eof_received()
    async with asyncio.timeout(_SECONDS):
        await serving
    assert server.connections == 0
    assert len(conn.peek()) <= len(data) + len(start)


def one_input(data: bytes) -> None:
    """Converse; raises only for a bug."""
    if data:
        kind, pieces = data[0] % len(_STARTS), data[0] // len(_STARTS)
        size = (1, 2, 7, 64, 4096)[pieces % 5]
        _runner.run(_converse(_STARTS[kind], data[1:], size))
