"""What a peer says between and inside calls, read by the server and the client side's own code.

The first byte chooses who reads; the rest is what comes over the wire, in pieces whose sizes come
from the second byte. Everything runs without sockets, the stream being fed by hand.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc import framing
from smallstack.srpc.client import Client
from smallstack.srpc.connection import Connection
from smallstack.srpc.server import Call, Handler, Server
from smallstack.telemetry.errors import SmallStackError


class _Transport(asyncio.Transport):
    """Swallows what is sent, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.closed = False

    def write(self, data: Any) -> None:
        self.sent += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def _get_vm_info(call: Call, request: hypervisor.GetVmInfoRequest) -> Any:
    return hypervisor.GetVmInfoResponse(error=f"no VM {request.ip_address}")


async def _create_vm(call: Call) -> None:
    request = await call.conn.decode(hypervisor.CreateVmRequest)
    await call.conn.read_exactly(min(request.image_data_size, 1000))
    call.conn.encode(hypervisor.CreateVmResponse(final=True))


async def _serial(call: Call) -> None:
    while data := await call.conn.read_some():
        call.conn.write(data)
        await call.conn.flush()


def _server() -> Server:
    server = Server(insecure=True)
    handlers: dict[str, Handler] = {
        "GetVmInfo": _get_vm_info,
        "CreateVm": _create_vm,
        "ConnectToVmSerialPort": _serial,
    }
    server.register("Hypervisor", handlers)
    return server


_SERVER = _server()


async def _serve(conn: Connection) -> None:
    _SERVER.admit(conn)
    await _SERVER.serve(conn)
    assert _SERVER.connections == 0


async def _call(conn: Connection) -> None:
    client = Client(conn, "fuzz", 0)
    request = hypervisor.GetVmInfoRequest(ip_address="198.51.100.1")
    kind = hypervisor.GetVmInfoResponse
    await client.ping()
    await client.request("Hypervisor.GetVmInfo", request, kind)
    async with client.raw("ImageServer.ListImages") as raw:
        while await raw.read_line():
            pass


async def _feed(conn: Connection, data: bytes, step: int, work: Coroutine[Any, Any, None]) -> None:
    transport = _Transport()
    conn.connection_made(transport)
    task = asyncio.ensure_future(work)
    for at in range(0, len(data), step):
        await asyncio.sleep(0)
        conn.data_received(data[at : at + step])
    conn.eof_received()
    try:
        await task
    except SmallStackError as error:
        assert "\n" not in str(error)
    finally:
        conn.connection_lost(None)
    assert transport.sent <= 70_000 + 2 * len(data) + 200 * data.count(b"\n")


async def _run(data: bytes) -> None:
    conn = Connection()
    who, step, rest = data[0] % 3, data[1] + 1, data[2:]
    if who == 0:
        await _feed(conn, rest, step, _serve(conn))
    elif who == 1:
        await _feed(conn, framing.connect_request(framing.PLAIN_JSON) + rest, step, _serve(conn))
    else:
        conn.json = bool(data[0] & 4)
        await _feed(conn, rest, step, _call(conn))


_loop = asyncio.new_event_loop()


def one_input(data: bytes) -> None:
    """One conversation; raises only for a bug."""
    if len(data) >= 2:
        _loop.run_until_complete(_run(data))
