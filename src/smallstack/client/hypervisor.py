"""The client of the Hypervisor service. Sizes are bytes or MiB as named; durations are ns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from smallstack.client.errors import ServiceError
from smallstack.client.following import follow, image_source
from smallstack.client.host_calls import HostCalls
from smallstack.client.moves import Moves
from smallstack.client.roots import Roots
from smallstack.client.service import Sent, Source, receive
from smallstack.client.vm_changes import VmChanges
from smallstack.client.volume_changes import VolumeChanges
from smallstack.proto import hypervisor as proto
from smallstack.proto.vm import Subnet, VmInfo
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError

SECOND = 1_000_000_000


class HypervisorClient(VmChanges, VolumeChanges, HostCalls, Roots, Moves):
    """Every method raises ServiceError for what the Hypervisor refuses, CallError for rights."""

    service = "Hypervisor"

    async def create_vm(
        self,
        request: proto.create.CreateVmRequest,
        image_data: bytes | Path | None = None,
        user_data: bytes | Path = b"",
        sent: Sent | None = None,
    ) -> AsyncGenerator[proto.create.CreateVmResponse, None]:
        """Create a VM: every message as it comes, the last one has ``final`` and the address.

        ``image_data`` is a disk image to send instead of naming an image; ``sent`` hears how much
        of it has gone. Their sizes are filled into the request. A VM that is not acknowledged
        (`acknowledge_vm`) within 15 s of the last message is destroyed. Leaving the iterator early
        gives the creation up. Raises SourceError for what cannot be sent.
        """
        sources = [Source(user_data)]
        request.user_data_size = sources[0].size
        if image_data is not None:
            sources.insert(0, image_source(image_data))
            request.image_data_size = sources[0].size
        replies = follow(
            self.client,
            "Hypervisor.CreateVm",
            request,
            proto.create.CreateVmResponse,
            sources,
            sent if image_data is not None else None,
        )
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def new_vm(
        self,
        request: proto.create.CreateVmRequest,
        image_data: bytes | Path | None = None,
        user_data: bytes | Path = b"",
        *,
        progress: Callable[[str], None] | None = None,
        sent: Sent | None = None,
    ) -> proto.create.CreateVmResponse:
        """Create a VM and keep it: `create_vm` and `acknowledge_vm`; the last message.

        ``progress`` hears each message that says what is being done. The reply has the VM's
        address, and whether it did not ask for it in time: that is no error.
        """
        replies = self.create_vm(request, image_data, user_data, sent)
        async with aclosing(replies):
            async for reply in replies:
                if reply.progress_message and progress is not None:
                    progress(reply.progress_message)
                last = reply
        await self.acknowledge_vm(last.ip_address)
        return last

    async def acknowledge_vm(self, ip_address: str) -> None:
        """Keep a VM that was just created."""
        request = proto.create.AcknowledgeVmRequest(ip_address=ip_address)
        await self.checked("AcknowledgeVm", request, proto.create.AcknowledgeVmResponse)

    async def list_vms(
        self,
        *,
        ignore_state_mask: int = 0,
        owner_users: Sequence[str] = (),
        owner_groups: Sequence[str] = (),
        tags: Mapping[str, Sequence[str]] | None = None,
        sort: bool = True,
    ) -> list[str]:
        """Addresses of the VMs; bit n of the mask hides state n."""
        request = proto.info.ListVMsRequest(
            ignore_state_mask=ignore_state_mask,
            owner_users=list(owner_users),
            owner_groups=list(owner_groups),
            vm_tags_to_match={key: list(values) for key, values in (tags or {}).items()},
            sort=sort,
        )
        return (await self.call("ListVMs", request, proto.info.ListVMsResponse)).ip_addresses

    async def get_vm_info(self, ip_address: str) -> VmInfo:
        """The record of one VM."""
        request = proto.info.GetVmInfoRequest(ip_address=ip_address)
        return (await self.checked("GetVmInfo", request, proto.info.GetVmInfoResponse)).vm_info

    async def get_vm_infos(
        self,
        *,
        ignore_state_mask: int = 0,
        owner_users: Sequence[str] = (),
        owner_groups: Sequence[str] = (),
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> list[VmInfo]:
        """The records of all VMs that match, as `list_vms`."""
        request = proto.info.GetVmInfosRequest(
            ignore_state_mask=ignore_state_mask,
            owner_users=list(owner_users),
            owner_groups=list(owner_groups),
            vm_tags_to_match={key: list(values) for key, values in (tags or {}).items()},
        )
        return (await self.checked("GetVmInfos", request, proto.info.GetVmInfosResponse)).vm_infos

    async def start_vm(
        self, ip_address: str, *, dhcp_timeout: int = 0, access_token: bytes = b""
    ) -> bool:
        """Start a stopped VM; whether it asked for its address within ``dhcp_timeout`` ns.

        With a timeout of 0 nothing is waited for and the answer is True.
        """
        request = proto.power.StartVmRequest(
            ip_address=ip_address, dhcp_timeout=dhcp_timeout, access_token=access_token
        )
        reply = await self.checked("StartVm", request, proto.power.StartVmResponse)
        return not reply.dhcp_timed_out

    async def stop_vm(self, ip_address: str, *, access_token: bytes = b"") -> None:
        """Stop a running VM and wait until it has stopped."""
        request = proto.power.StopVmRequest(ip_address=ip_address, access_token=access_token)
        await self.checked("StopVm", request, proto.power.StopVmResponse)

    async def reboot_vm(self, ip_address: str, *, dhcp_timeout: int = 0) -> bool:
        """Reboot a running VM; the answer is that of `start_vm`."""
        request = proto.power.RebootVmRequest(ip_address=ip_address, dhcp_timeout=dhcp_timeout)
        reply = await self.checked("RebootVm", request, proto.power.RebootVmResponse)
        return not reply.dhcp_timed_out

    async def destroy_vm(self, ip_address: str, *, access_token: bytes = b"") -> None:
        """Remove a VM, its volumes and its address."""
        request = proto.power.DestroyVmRequest(ip_address=ip_address, access_token=access_token)
        await self.checked("DestroyVm", request, proto.power.DestroyVmResponse)

    @asynccontextmanager
    async def connect_serial(self, ip_address: str, port: int = 0) -> AsyncIterator[Connection]:
        """The VM's serial port as a stream of raw bytes both ways; closed on leaving."""
        request = proto.reach.ConnectToVmSerialPortRequest(ip_address=ip_address, port_number=port)
        response = proto.reach.ConnectToVmSerialPortResponse
        async with self._stream("ConnectToVmSerialPort", request, response) as conn:
            yield conn

    @asynccontextmanager
    async def connect_console(self, ip_address: str) -> AsyncIterator[Connection]:
        """The VM's display as a stream of RFB (VNC) both ways; closed on leaving."""
        request = proto.reach.ConnectToVmConsoleRequest(ip_address=ip_address)
        response = proto.reach.ConnectToVmConsoleResponse
        async with self._stream("ConnectToVmConsole", request, response) as conn:
            yield conn

    @asynccontextmanager
    async def connect_manager(self, ip_address: str) -> AsyncIterator[Connection]:
        """QEMU's monitor: QMP, a command a line, a line back for each; closed on leaving."""
        request = proto.reach.ConnectToVmManagerRequest(ip_address=ip_address)
        response = proto.reach.ConnectToVmManagerResponse
        async with self._stream("ConnectToVmManager", request, response) as conn:
            yield conn

    @asynccontextmanager
    async def _stream(
        self, method: str, request: Any, response: type[Any]
    ) -> AsyncIterator[Connection]:
        async with self.client.raw(f"Hypervisor.{method}") as conn:
            conn.encode(request)
            await conn.flush()
            self.check(await conn.decode(response))
            try:
                yield conn
            finally:
                conn.close()

    async def probe_vm_port(self, ip_address: str, port: int, timeout: int = 10 * SECOND) -> bool:
        """Whether a TCP port of the VM accepts within ``timeout`` ns."""
        request = proto.reach.ProbeVmPortRequest(
            ip_address=ip_address, port_number=port, timeout=timeout
        )
        return (
            await self.checked("ProbeVmPort", request, proto.reach.ProbeVmPortResponse)
        ).port_is_open

    async def trace_vm_metadata(self, ip_address: str) -> AsyncGenerator[str, None]:
        """Paths the VM asks its metadata server for, as it asks; ends with the VM."""
        async with self.client.raw("Hypervisor.TraceVmMetadata") as conn:
            conn.encode(proto.reach.TraceVmMetadataRequest(ip_address=ip_address))
            await conn.flush()
            self.check(await conn.decode(proto.reach.TraceVmMetadataResponse))
            try:
                while line := await conn.read_line():
                    yield line.decode(errors="replace")
            except ConnectionClosedError:
                return

    async def get_updates(self) -> AsyncGenerator[proto.host.Update, None]:
        """What changes on the Hypervisor: its whole state first, then changes and heartbeats."""
        async with self.client.raw("Hypervisor.GetUpdates") as conn:
            while True:
                yield await conn.decode(proto.host.Update)

    async def get_capacity(self) -> proto.host.GetCapacityResponse:
        """Memory, CPUs and space of the machine."""
        request = proto.host.GetCapacityRequest()
        return await self.checked("GetCapacity", request, proto.host.GetCapacityResponse)

    async def change_address_pool(self, request: proto.network.ChangeAddressPoolRequest) -> None:
        """Add addresses to the pool or take them out."""
        await self.checked("ChangeAddressPool", request, proto.network.ChangeAddressPoolResponse)

    async def update_subnets(self, request: proto.network.UpdateSubnetsRequest) -> None:
        """Add, change or delete subnets."""
        await self.checked("UpdateSubnets", request, proto.network.UpdateSubnetsResponse)

    async def list_subnets(self, sort: bool = True) -> list[Subnet]:
        """The subnets the Hypervisor knows."""
        request = proto.network.ListSubnetsRequest(sort=sort)
        return (
            await self.checked("ListSubnets", request, proto.network.ListSubnetsResponse)
        ).subnets

    async def get_vm_user_data(self, ip_address: str, *, access_token: bytes = b"") -> bytes:
        """The user data of a VM, b"" when it has none."""
        async with self.client.raw("Hypervisor.GetVmUserData") as conn:
            conn.encode(
                proto.user_data.GetVmUserDataRequest(
                    ip_address=ip_address, access_token=access_token
                )
            )
            await conn.flush()
            reply = await conn.decode(proto.user_data.GetVmUserDataResponse)
            if not reply.error:
                return b"".join([data async for data in receive(conn, reply.length)])
        raise ServiceError(text=reply.error)

    async def replace_vm_user_data(self, ip_address: str, user_data: bytes | Path) -> None:
        """Give a VM other user data."""
        source = Source(user_data)
        method = "Hypervisor.ReplaceVmUserData"
        async with self.client.raw(method) as conn:
            request = proto.user_data.ReplaceVmUserDataRequest(
                ip_address=ip_address, size=source.size
            )
            conn.encode(request)
            await source.send(conn)
            reply = await self.client.reply(conn, method, proto.user_data.ReplaceVmUserDataResponse)
        self.check(reply)
