"""Reaching into a VM: its serial port, its display, its monitor; what it asks its metadata server
for."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from smallstack.hypervisor.errors import RequestError, StateError
from smallstack.hypervisor.methods.base import CHUNK, Methods, Stream, first_of, opening, pass_on
from smallstack.hypervisor.vm import Vm
from smallstack.machine.console import read_log
from smallstack.machine.errors import ConsoleClosedError, MonitorLostError
from smallstack.machine.process import Machine
from smallstack.machine.start import CONSOLE
from smallstack.proto.enums import ConsoleType, State
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.server import Call, Handler

MAX_COMMAND = 64 * 1024
"""Bytes of one command for QEMU's monitor."""
MAX_TOLD = 100
"""Answers and events that wait for a client of the monitor."""


class Reaching(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ConnectToVmConsole": opening(self._console),
            "ConnectToVmManager": opening(self._manager),
            "ConnectToVmSerialPort": opening(self._serial),
            "TraceVmMetadata": opening(self._trace),
        }

    async def _serial(self, call: Call, request: proto.ConnectToVmSerialPortRequest) -> Stream:
        conn = call.conn
        if request.port_number > 0:
            raise RequestError(detail="only one serial port is supported")
        vm = self._mine(call, request.ip_address)
        machine = _running(vm)
        # Read and attach at one go: no byte is missed or shown twice.
        history = read_log(vm.directory.path / CONSOLE).joined()
        session = machine.console.attach()

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

    async def _console(self, call: Call, request: proto.ConnectToVmConsoleRequest) -> Stream:
        """RFB, as VNC clients speak it, between the caller and the VM's display."""
        conn = call.conn
        vm = self._mine(call, request.ip_address)
        if vm.info.console_type is not ConsoleType.VNC:
            raise RequestError(detail="VM has no VNC console: stop it and change its console type")
        sock = await _running(vm).open_display()

        async def stream() -> None:
            with sock:
                conn.encode(proto.ConnectToVmConsoleResponse())
                await conn.flush()
                reader, writer = await asyncio.open_connection(sock=sock)

                async def typing(data: bytes) -> None:
                    writer.write(data)
                    await writer.drain()

                typed = asyncio.create_task(pass_on(conn, typing))
                try:
                    while data := await first_of(reader.read(CHUNK), typed):
                        conn.write(data)
                        await conn.flush()
                finally:
                    typed.cancel()
                    writer.transport.abort()
            conn.close()

        return stream

    async def _manager(self, call: Call, request: proto.ConnectToVmManagerRequest) -> Stream:
        """QMP: a command a line, ended by CR or LF; a line back for each, and for each event."""
        conn = call.conn
        machine = _running(self._mine(call, request.ip_address))
        told: asyncio.Queue[dict[str, object] | None] = asyncio.Queue(MAX_TOLD)

        def hear(name: str, data: Mapping[str, object]) -> None:
            if not told.full():  # who is so slow misses events
                told.put_nowait({"event": name, "data": data})

        def wake(_task: "asyncio.Task[None]") -> None:
            if not told.full():
                told.put_nowait(None)

        async def read() -> None:
            rest = b""
            while data := await conn.read_some(MAX_COMMAND):
                *lines, rest = (rest + data).replace(b"\n", b"\r").split(b"\r")
                if len(rest) > MAX_COMMAND:
                    await told.put(_failure(f"a command of more than {MAX_COMMAND} bytes"))
                    return
                for line in filter(None, map(bytes.strip, lines)):
                    try:
                        await told.put(await machine.answer(line.decode(errors="replace")))
                    except MonitorLostError as error:
                        await told.put(_failure(str(error)))
                        return

        async def stream() -> None:
            machine.listeners.append(hear)
            ends = [asyncio.create_task(read()), asyncio.create_task(_ended(machine))]
            for task in ends:
                task.add_done_callback(wake)
            try:
                conn.encode(proto.ConnectToVmManagerResponse())
                await conn.flush()
                while not any(task.done() for task in ends) or not told.empty():
                    if (line := await told.get()) is not None:
                        conn.write(json.dumps(line).encode() + b"\r\n")
                        await conn.flush()
            finally:
                machine.listeners.remove(hear)
                for task in ends:
                    task.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
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


def _running(vm: Vm) -> Machine:
    if vm.state is not State.RUNNING or vm.machine is None:
        raise StateError(text="VM is not running")
    return vm.machine


def _failure(text: str) -> dict[str, object]:
    """A line that tells the caller why nothing more comes, as QEMU tells of errors."""
    return {"error": {"class": "GenericError", "desc": text}}


async def _ended(machine: Machine) -> None:
    await machine.wait()


def _line(path: str) -> bytes:
    """A path as a line: a guest's own line breaks must not end it."""
    return path.replace("\n", "\\n").replace("\r", "\\r").encode(errors="replace") + b"\n"
