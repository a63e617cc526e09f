"""The RPC methods of the Hypervisor service: who may, what they say, in upstream's words.

What goes wrong is told in the reply's ``Error``; a raw method tells it in its first message.
Methods that only read need an authenticated caller, those that act on a VM its owner (`_mine`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.checks import announced_bytes
from smallstack.hypervisor.create import Creation, new_journal
from smallstack.hypervisor.dhcp_wait import DhcpWait
from smallstack.hypervisor.errors import (
    BlockedError,
    DisabledError,
    RequestError,
    StateError,
    SubnetInUseError,
)
from smallstack.hypervisor.filters import matches, version_sorted
from smallstack.hypervisor.roots import full_disk
from smallstack.hypervisor.upload import Upload
from smallstack.hypervisor.vm import Vm
from smallstack.identity.peer import Peer
from smallstack.machine.console import read_log
from smallstack.machine.errors import ConsoleClosedError
from smallstack.machine.start import CONSOLE
from smallstack.proto.enums import State
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.hypervisor.create import MAX_USER_DATA
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.srpc.server import Call, Handler
from smallstack.steps import PointHook
from smallstack.telemetry.errors import SmallStackError, describe
from smallstack.telemetry.timeline import Timeline

_log = logging.getLogger("smallstack.hypervisor")
NANOSECONDS = 1_000_000_000
PROBE_INTERVAL = 0.25
PROBE_TIMEOUT = 1.0
"""Seconds between attempts to connect to a VM's port, and for one of them."""
MAX_WAIT = 3600 * NANOSECONDS
"""Longest wait for a guest, whatever a client asks for."""
CHUNK = 256 * 1024
R = TypeVar("R")
Request = TypeVar("Request")


class Service:
    """The methods, over one agent."""

    def __init__(self, agent: Agent, on_point: PointHook | None = None) -> None:
        """``on_point`` hears of every step of every create; see `smallstack.steps.run`."""
        self._agent = agent
        self._on_point = on_point

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, for `Server.register`."""
        answered: dict[str, tuple[Callable[..., Awaitable[Any]], type[Any]]] = {
            "AcknowledgeVm": (self._acknowledge, proto.AcknowledgeVmResponse),
            "ChangeAddressPool": (self._change_pool, proto.ChangeAddressPoolResponse),
            "DestroyVm": (self._destroy, proto.DestroyVmResponse),
            "GetCapacity": (self._capacity, proto.GetCapacityResponse),
            "GetVmInfo": (self._info, proto.GetVmInfoResponse),
            "GetVmInfos": (self._infos, proto.GetVmInfosResponse),
            "ListSubnets": (self._subnets, proto.ListSubnetsResponse),
            "ProbeVmPort": (self._probe, proto.ProbeVmPortResponse),
            "RebootVm": (self._reboot, proto.RebootVmResponse),
            "ReplaceVmUserData": (self._replace_user_data, proto.ReplaceVmUserDataResponse),
            "StartVm": (self._start, proto.StartVmResponse),
            "StopVm": (self._stop, proto.StopVmResponse),
            "UpdateSubnets": (self._update_subnets, proto.UpdateSubnetsResponse),
        }
        handlers: dict[str, Handler] = {
            name: _answering(work, response) for name, (work, response) in answered.items()
        }
        handlers["ListVMs"] = self._list
        handlers["CreateVm"] = self._create
        handlers["ConnectToVmSerialPort"] = self._serial
        handlers["GetVmUserData"] = self._get_user_data
        handlers["TraceVmMetadata"] = self._trace
        return handlers

    def _mine(self, call: Call, ip: str, token: bytes = b"", *, write: bool = True) -> Vm:
        """The VM, if the caller may have it; with ``write``, to change it.

        Raises NoVmError, NoAccessError, BlockedError.
        """
        vm = self._agent.vm(ip)
        vm.check_access(call.peer, token)
        if write and vm.in_creation:
            raise BlockedError
        return vm

    # Creating.

    async def _create(self, call: Call) -> None:
        conn = call.conn
        timeline = Timeline()
        request = await conn.decode(proto.OwnCreateVmRequest)
        timeline.add("receive request", timeline.created_ns, timeline.now())
        upload = Upload(conn, announced_bytes(request))
        creation = Creation(self._agent, new_journal(self._agent.parts.store.journals), timeline)

        async def progress(message: str, ip: str) -> None:
            conn.encode(proto.CreateVmResponse(progress_message=message, ip_address=ip))
            await conn.flush()

        work = creation.run(request, call.peer, upload, progress, self._on_point)
        try:
            vm = await conn.while_connected(work)
        except (ConnectionClosedError, PeerStalledError) as error:
            _log.info("CreateVm(%s) given up: %s", call.peer, error)
            self._agent.creates["failed"] += 1
            raise
        except Exception as error:
            self._agent.creates["failed"] += 1
            text = _told(error, "CreateVm", call.peer)
            conn.encode(proto.CreateVmResponse(error=text))
            await conn.flush()
            # Told at once, so that a client that listens need not send the rest; others do.
            await upload.drain()
            return
        self._agent.creates["created"] += 1
        conn.encode(
            proto.CreateVmResponse(
                dhcp_timed_out=creation.dhcp_timed_out,
                final=True,
                ip_address=vm.ip,
                timeline=as_phases(timeline),
            )
        )
        await conn.flush()
        _log.info("CreateVm(%s) finished, IP=%s", call.peer, vm.ip)

    async def _acknowledge(
        self, call: Call, request: proto.AcknowledgeVmRequest
    ) -> proto.AcknowledgeVmResponse:
        await self._mine(call, request.ip_address).acknowledge()
        return proto.AcknowledgeVmResponse()

    # The life of a VM.

    async def _start(self, call: Call, request: proto.StartVmRequest) -> proto.StartVmResponse:
        if self._agent.parts.store.disabled:
            raise DisabledError
        vm = self._mine(call, request.ip_address, request.access_token)
        timed_out = await self._with_dhcp(call, vm, vm.start, request.dhcp_timeout)
        return proto.StartVmResponse(dhcp_timed_out=timed_out)

    async def _stop(self, call: Call, request: proto.StopVmRequest) -> proto.StopVmResponse:
        await self._mine(call, request.ip_address, request.access_token).stop()
        return proto.StopVmResponse()

    async def _reboot(self, call: Call, request: proto.RebootVmRequest) -> proto.RebootVmResponse:
        vm = self._mine(call, request.ip_address)
        timed_out = await self._with_dhcp(call, vm, vm.reboot, request.dhcp_timeout)
        return proto.RebootVmResponse(dhcp_timed_out=timed_out)

    async def _destroy(
        self, call: Call, request: proto.DestroyVmRequest
    ) -> proto.DestroyVmResponse:
        await self._mine(call, request.ip_address, request.access_token).destroy()
        return proto.DestroyVmResponse()

    async def _with_dhcp(
        self, call: Call, vm: Vm, work: Callable[[], Awaitable[None]], timeout_ns: int
    ) -> bool:
        """Do something that boots the guest, then wait for its DHCP; whether time ran out.

        The wait ends with the caller; what boots the guest does not.
        """
        if timeout_ns <= 0:
            await work()
            return False
        wait = DhcpWait(self._agent.parts.wiring.dhcp, vm)
        try:
            await work()
            return await call.conn.while_connected(wait.wait(min(timeout_ns, MAX_WAIT)))
        finally:
            wait.close()

    # Looking.

    async def _list(self, _call: Call, request: proto.ListVMsRequest) -> proto.ListVMsResponse:
        found = [
            ip
            for ip, vm in self._agent.vms.items()
            if matches(
                vm.info,
                request.ignore_state_mask,
                request.owner_groups,
                request.owner_users,
                request.vm_tags_to_match,
            )
        ]
        return proto.ListVMsResponse(ip_addresses=version_sorted(found) if request.sort else found)

    async def _info(self, _call: Call, request: proto.GetVmInfoRequest) -> proto.GetVmInfoResponse:
        return proto.GetVmInfoResponse(vm_info=self._agent.vm(request.ip_address).info)

    async def _infos(
        self, _call: Call, request: proto.GetVmInfosRequest
    ) -> proto.GetVmInfosResponse:
        found = [
            vm.info
            for vm in self._agent.vms.values()
            if matches(
                vm.info,
                request.ignore_state_mask,
                request.owner_groups,
                request.owner_users,
                request.vm_tags_to_match,
            )
        ]
        return proto.GetVmInfosResponse(vm_infos=found)

    async def _capacity(
        self, _call: Call, _request: proto.GetCapacityRequest
    ) -> proto.GetCapacityResponse:
        ledger = self._agent.parts.ledger
        return proto.GetCapacityResponse(
            available_memory_in_mib=ledger.host.available_mib(),
            memory_in_mib=ledger.host.memory_mib,
            num_cpus=ledger.host.milli_cpus // 1000,
            total_volume_bytes=ledger.total_volume_bytes(),
        )

    async def _probe(
        self, call: Call, request: proto.ProbeVmPortRequest
    ) -> proto.ProbeVmPortResponse:
        vm = self._agent.vm(request.ip_address)
        if not 0 < request.port_number < 1 << 16:
            raise RequestError(detail=f"there is no port {request.port_number}")
        seconds = min(request.timeout, MAX_WAIT) / NANOSECONDS
        opened = await call.conn.while_connected(probe_port(vm.ip, request.port_number, seconds))
        return proto.ProbeVmPortResponse(port_is_open=opened)

    # Streams.

    async def _serial(self, call: Call) -> None:
        conn = call.conn
        request = await conn.decode(proto.ConnectToVmSerialPortRequest)
        try:
            if request.port_number > 0:
                raise RequestError(detail="only one serial port is supported")
            vm = self._mine(call, request.ip_address)
            if vm.state is not State.RUNNING or vm.machine is None:
                raise StateError(text="VM is not running")
            # Read and attach at one go: no byte is missed or shown twice.
            history = read_log(vm.directory.path / CONSOLE).joined()
            session = vm.machine.console.attach()
        except Exception as error:
            text = _told(error, "ConnectToVmSerialPort", call.peer)
            conn.encode(proto.ConnectToVmSerialPortResponse(error=text))
            await conn.flush()
            return
        async with session:
            conn.encode(proto.ConnectToVmSerialPortResponse())
            conn.write(history)
            await conn.flush()
            typing = asyncio.create_task(_type(conn, session.write))
            try:
                while data := await _first(session.read(), typing):
                    conn.write(data)
                    await conn.flush()
                if not typing.done():
                    conn.write(b"VM serial port closed\n")
                    await conn.flush()
            finally:
                typing.cancel()
        conn.close()

    async def _trace(self, call: Call) -> None:
        conn = call.conn
        request = await conn.decode(proto.TraceVmMetadataRequest)
        try:
            vm = self._mine(call, request.ip_address)
        except Exception as error:
            text = _told(error, "TraceVmMetadata", call.peer)
            conn.encode(proto.TraceVmMetadataResponse(error=text))
            await conn.flush()
            return
        with self._agent.parts.wiring.tracers.open(vm.ip) as tracer:
            conn.encode(proto.TraceVmMetadataResponse())
            await conn.flush()

            async def pass_on() -> None:
                async for path in tracer:
                    conn.write(_line(path))
                    await conn.flush()

            with suppress(ConnectionClosedError):
                await conn.while_connected(pass_on())
                conn.write(b"VM destroyed\n\n")
                await conn.flush()

    # User data.

    async def _get_user_data(self, call: Call) -> None:
        conn = call.conn
        request = await conn.decode(proto.GetVmUserDataRequest)
        try:
            vm = self._mine(call, request.ip_address, request.access_token, write=False)
            file = await asyncio.to_thread(vm.user_data.open, "rb")
        except FileNotFoundError:
            conn.encode(proto.GetVmUserDataResponse())
            await conn.flush()
            return
        except Exception as error:
            text = _told(error, "GetVmUserData", call.peer)
            conn.encode(proto.GetVmUserDataResponse(error=text))
            await conn.flush()
            return
        with file:
            left = file.seek(0, 2)
            file.seek(0)
            conn.encode(proto.GetVmUserDataResponse(length=left))
            while left:
                data = await asyncio.to_thread(file.read, min(left, CHUNK))
                if not data:
                    raise RequestError(detail=f"{vm.user_data} got shorter while it was read")
                conn.write(data)
                await conn.flush()
                left -= len(data)

    async def _replace_user_data(
        self, call: Call, request: proto.ReplaceVmUserDataRequest
    ) -> proto.ReplaceVmUserDataResponse:
        upload = Upload(call.conn, request.size)
        try:
            vm = self._mine(call, request.ip_address)
            if request.size > MAX_USER_DATA:
                raise RequestError(
                    detail=f"{request.size} bytes of user data: at most {MAX_USER_DATA}"
                )
            with full_disk(vm.user_data):
                await vm.replace_user_data(lambda path: upload.store(request.size, path))
        except (ConnectionClosedError, PeerStalledError):
            raise
        except SmallStackError:
            await upload.drain()
            raise
        return proto.ReplaceVmUserDataResponse()

    # Addresses and subnets.

    async def _change_pool(
        self, _call: Call, request: proto.ChangeAddressPoolRequest
    ) -> proto.ChangeAddressPoolResponse:
        await self._agent.parts.book.change_pool(
            request.addresses_to_add,
            request.addresses_to_remove,
            request.maximum_free_addresses,
            self._agent.macs_in_use(),
        )
        return proto.ChangeAddressPoolResponse()

    async def _update_subnets(
        self, _call: Call, request: proto.UpdateSubnetsRequest
    ) -> proto.UpdateSubnetsResponse:
        parts = self._agent.parts
        for ip, holding in parts.ledger.holdings.items():
            for subnet in set(request.delete).intersection(holding.subnet_ids):
                raise SubnetInUseError(subnet=subnet, ip=ip)
        await parts.book.update_subnets(request.add, request.change, request.delete)
        return proto.UpdateSubnetsResponse()

    async def _subnets(
        self, _call: Call, _request: proto.ListSubnetsRequest
    ) -> proto.ListSubnetsResponse:
        return proto.ListSubnetsResponse(subnets=self._agent.parts.book.list_subnets())


async def probe_port(ip: str, port: int, seconds: float) -> bool:
    """Whether a TCP port accepts a connection within so many seconds: an attempt every 250 ms."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while (left := deadline - loop.time()) > 0:
        began = loop.time()
        try:
            async with asyncio.timeout(min(PROBE_TIMEOUT, left)):
                _, writer = await asyncio.open_connection(ip, port)
        except (OSError, TimeoutError):
            pause = min(began + PROBE_INTERVAL, deadline) - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)  # a closed port gives no event to wait for
        else:
            writer.transport.abort()
            return True
    return False


def as_phases(timeline: Timeline) -> list[proto.TimelinePhase]:
    """A timeline as it travels."""
    return [
        proto.TimelinePhase(
            name=phase.name,
            start_nanoseconds=phase.start_ns,
            duration_nanoseconds=phase.duration_ns,
        )
        for phase in sorted(timeline.phases, key=lambda phase: phase.start_ns)
    ]


def _answering(work: Callable[..., Awaitable[R]], response: type[R]) -> Handler:
    """A handler that tells what goes wrong in the reply's ``error``."""

    @wraps(work)
    async def handler(call: Call, request: Any) -> R:
        try:
            return await work(call, request)
        except (ConnectionClosedError, PeerStalledError):
            raise
        except Exception as error:
            made: Any = response
            reply: R = made(error=_told(error, call.method.short_name, call.peer))
            return reply

    return handler


def _told(error: Exception, method: str, peer: Peer) -> str:
    """What the caller is told; what nobody foresaw goes into the log with its traceback."""
    if isinstance(error, (SmallStackError, OSError)):
        text = describe(error)
        _log.info("%s(%s) failed: %s", method, peer, text)
        return text
    _log.error("%s(%s) failed", method, peer, exc_info=error)
    return f"internal error ({type(error).__name__}): the agent's log has more"


async def _type(conn: Connection, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass on what a client types, until it goes or the console ends."""
    with suppress(ConnectionClosedError, ConsoleClosedError):
        while data := await conn.read_some():
            await write(data)


async def _first(reading: Awaitable[bytes], other: "asyncio.Task[None]") -> bytes:
    """What is read; b"" when the other task ends first."""
    task = asyncio.ensure_future(reading)
    await asyncio.wait((task, other), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return b""


def _line(path: str) -> bytes:
    """A path as a line: a guest's own line breaks must not end it."""
    return path.replace("\n", "\\n").replace("\r", "\\r").encode(errors="replace") + b"\n"
