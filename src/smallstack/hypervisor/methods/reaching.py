"""Reaching into a VM: its serial port, and what it asks its metadata server for."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from smallstack.hypervisor.errors import RequestError, StateError
from smallstack.hypervisor.methods.base import Methods, Stream, first_of, opening, pass_on
from smallstack.machine.console import read_log
from smallstack.machine.errors import ConsoleClosedError
from smallstack.machine.start import CONSOLE
from smallstack.proto.enums import State
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.server import Call, Handler


class Reaching(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ConnectToVmSerialPort": opening(self._serial),
            "TraceVmMetadata": opening(self._trace),
        }

    async def _serial(self, call: Call, request: proto.ConnectToVmSerialPortRequest) -> Stream:
        conn = call.conn
        if request.port_number > 0:
            raise RequestError(detail="only one serial port is supported")
        vm = self._mine(call, request.ip_address)
        if vm.state is not State.RUNNING or vm.machine is None:
            raise StateError(text="VM is not running")
        # Read and attach at one go: no byte is missed or shown twice.
        history = read_log(vm.directory.path / CONSOLE).joined()
        session = vm.machine.console.attach()

        async def typing(data: bytes) -> None:
            with suppress(ConsoleClosedError):
                await session.write(data)

        async def stream() -> None:
            async with session:
                conn.encode(proto.ConnectToVmSerialPortResponse())
                conn.write(history)
                await conn.flush()
                typed = asyncio.create_task(pass_on(conn, typing))
                try:
                    while data := await first_of(session.read(), typed):
                        conn.write(data)
                        await conn.flush()
                    if not typed.done():
                        conn.write(b"VM serial port closed\n")
                        await conn.flush()
                finally:
                    typed.cancel()
            conn.close()

        return stream

    async def _trace(self, call: Call, request: proto.TraceVmMetadataRequest) -> Stream:
        conn = call.conn
        vm = self._mine(call, request.ip_address)

        async def stream() -> None:
            with self._agent.parts.wiring.tracers.open(vm.ip) as tracer:
                conn.encode(proto.TraceVmMetadataResponse())
                await conn.flush()

                async def tell() -> None:
                    async for path in tracer:
                        conn.write(_line(path))
                        await conn.flush()

                with suppress(ConnectionClosedError):
                    await conn.while_connected(tell())
                    conn.write(b"VM destroyed\n\n")
                    await conn.flush()

        return stream


def _line(path: str) -> bytes:
    """A path as a line: a guest's own line breaks must not end it."""
    return path.replace("\n", "\\n").replace("\r", "\\r").encode(errors="replace") + b"\n"
