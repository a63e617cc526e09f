"""A server on loopback, and certificates for every kind of caller."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from smallstack.daemon.listener import Listener, bind
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials, Pair, ServerCredentials
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc.errors import RpcError
from smallstack.srpc.server import Call, Server


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs in both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Certificates:
    """Where the authority is, what the server shows, and users by name."""

    directory: Path
    server: ServerCredentials
    authority: pki.Authority

    def user(self, name: str, **rights: Any) -> ClientCredentials:
        """A new certificate."""
        place = self.directory / "users" / f"{name}-{len(rights)}-{hash(str(rights)):x}"
        if not place.exists():
            pki.issue(self.authority, name, **rights).write(place)
        return ClientCredentials.load(place)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("pki")
    authority = pki.make_ca(directory / "ca")
    issued = pki.issue(authority, "server", server=True, names=["localhost"])
    pair = Pair(*issued.write(directory / "server"))
    return Certificates(directory, ServerCredentials(pair, directory / "ca" / "ca.pem"), authority)


class Trace:
    """What a test's handlers saw, and what they wait for."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.requests: list[Any] = []
        self.events: list[str] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()


def handlers(trace: Trace) -> dict[str, Any]:
    """One handler of each shape and each way to fail."""

    async def get_vm_info(
        call: Call, request: hypervisor.GetVmInfoRequest
    ) -> hypervisor.GetVmInfoResponse:
        trace.calls.append(call)
        trace.requests.append(request)
        return hypervisor.GetVmInfoResponse(error=f"no VM {request.ip_address}")

    async def stop_vm(call: Call, request: hypervisor.StopVmRequest) -> Any:
        if request.ip_address == "198.51.100.66":
            raise ValueError("a bug")
        raise RpcError("no such VM,\nreally")

    async def create_vm(call: Call) -> None:
        request = await call.conn.decode(hypervisor.CreateVmRequest)
        data = await call.conn.read_exactly(request.image_data_size)
        for text in ("one", "two"):
            call.conn.encode(hypervisor.CreateVmResponse(progress_message=text))
            await call.conn.flush()
        trace.requests.append((request, data))
        call.conn.encode(hypervisor.CreateVmResponse(final=True, ip_address="198.51.100.2"))
        await call.conn.flush()

    async def connect_serial(call: Call) -> None:
        await call.conn.decode(hypervisor.ConnectToVmSerialPortRequest)
        call.conn.encode(hypervisor.ConnectToVmSerialPortResponse())
        await call.conn.flush()
        while data := await call.conn.read_some():
            call.conn.write(data.upper())
            await call.conn.flush()

    async def trace_metadata(call: Call) -> None:
        trace.entered.set()
        await call.conn.peer_gone()
        trace.events.append("gone")
        trace.release.set()

    async def get_updates(call: Call) -> None:
        async def endless() -> None:
            trace.entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                trace.events.append("cancelled")
                raise

        try:
            await call.conn.while_connected(endless())
        finally:
            trace.release.set()

    async def get_user_data(call: Call) -> None:
        raise RpcError("raw methods just close")

    async def power_off(call: Call, request: hypervisor.PowerOffRequest) -> Any:
        return hypervisor.PowerOffResponse()

    return {
        "GetVmInfo": get_vm_info,
        "StopVm": stop_vm,
        "CreateVm": create_vm,
        "ConnectToVmSerialPort": connect_serial,
        "TraceVmMetadata": trace_metadata,
        "GetUpdates": get_updates,
        "GetVmUserData": get_user_data,
        "PowerOff": power_off,
    }


@dataclass
class Running:
    """A server that listens."""

    server: Server
    listener: Listener
    trace: Trace
    port: int
    opened: list[asyncio.StreamWriter]

    @property
    def address(self) -> str:
        """What to dial."""
        return f"127.0.0.1:{self.port}"

    async def plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare TCP connection to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        return reader, writer


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def serving(
        credentials: ServerCredentials | None = None,
        *,
        listener_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Running]:
        server = Server(credentials, insecure=credentials is None, **options)
        trace = Trace()
        server.register("Hypervisor", handlers(trace))
        listener = Listener(server, **(listener_options or {}))
        (sock,) = bind("127.0.0.1", 0)
        await listener.add(sock)
        running = Running(server, listener, trace, listener.addresses[0][1], [])
        try:
            yield running
        finally:
            for writer in running.opened:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()
            await listener.close(grace=1)

    return serving
