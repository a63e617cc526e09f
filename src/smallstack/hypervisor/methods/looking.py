"""Looking at VMs and at the machine: lists, records, logs, ports."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from smallstack.hypervisor.errors import RequestError
from smallstack.hypervisor.filters import matches, version_sorted
from smallstack.hypervisor.methods import base
from smallstack.hypervisor.methods.base import (
    NANOSECONDS,
    Methods,
    Stream,
    answering,
    open_file,
    opening,
    send_file,
)
from smallstack.hypervisor.vm import Vm
from smallstack.machine.start import QEMU_LOG
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.kinds import Time
from smallstack.proto.vm import StorageInfo
from smallstack.srpc.server import Call, Handler

LOGS = (QEMU_LOG, QEMU_LOG + ".old")
PATCH_LOG = "lastPatchLog"
PROBE_INTERVAL = 0.25
PROBE_TIMEOUT = 1.0
"""Seconds between attempts to connect to a VM's port, and for one of them."""


class Looking(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "GetCapacity": answering(self._capacity),
            "GetVmCreateRequest": answering(self._create_request),
            "GetVmInfo": answering(self._info),
            "GetVmInfos": answering(self._infos),
            "GetVmLastPatchLog": opening(self._patch_log),
            "GetVmVirtualiserLogFile": opening(self._log_file),
            "GetVmVolumeStorageConfiguration": answering(self._storage),
            "ListVMs": self._list,
            "ListVmVirtualiserLogFiles": answering(self._log_files),
            "ProbeVmPort": answering(self._probe),
        }

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
        seconds = min(request.timeout, base.MAX_WAIT) / NANOSECONDS
        opened = await call.conn.while_connected(probe_port(vm.ip, request.port_number, seconds))
        return proto.ProbeVmPortResponse(port_is_open=opened)

    async def _create_request(
        self, call: Call, request: proto.GetVmCreateRequestRequest
    ) -> proto.GetVmCreateRequestResponse:
        directory = self._mine(call, request.ip_address, write=False).directory
        try:
            made = await asyncio.to_thread(directory.read_request)
        except FileNotFoundError:
            raise RequestError(detail="nothing is kept of how the VM was created") from None
        return proto.GetVmCreateRequestResponse(create_vm_request=made)

    async def _storage(
        self, _call: Call, request: proto.GetVmVolumeStorageConfigurationRequest
    ) -> proto.GetVmVolumeStorageConfigurationResponse:
        vm, ledger = self._agent.vm(request.ip_address), self._agent.parts.ledger
        spaces = [(ledger.host.space(path), ledger.usable(path)) for path in ledger.directories]
        places = [Path(v.filename).parent.parent for v in vm.record.volume_locations]
        return proto.GetVmVolumeStorageConfigurationResponse(
            storage_infos=[
                StorageInfo(
                    available_bytes=space.available,
                    free_bytes=space.free,
                    size_bytes=space.size,
                    usable_bytes=usable,
                )
                for space, usable in spaces
            ],
            volume_storage_indices=[
                ledger.directories.index(path) for path in places if path in ledger.directories
            ],
        )

    # Logs.

    async def _log_files(
        self, _call: Call, request: proto.ListVmVirtualiserLogFilesRequest
    ) -> proto.ListVmVirtualiserLogFilesResponse:
        found = await asyncio.to_thread(_logs, self._agent.vm(request.ip_address))
        return proto.ListVmVirtualiserLogFilesResponse(
            filenames=list(found), lengths=list(found.values())
        )

    async def _log_file(self, call: Call, request: proto.GetVmVirtualiserLogFileRequest) -> Stream:
        conn = call.conn
        vm = self._mine(call, request.ip_address, write=False)
        found = await asyncio.to_thread(_logs, vm)
        if request.filename not in found:
            raise RequestError(detail=f"there is no log {request.filename!r}: see the list of logs")
        file, length = await open_file(vm.directory.path / request.filename)

        async def stream() -> None:
            conn.encode(proto.GetVmVirtualiserLogFileResponse(length=length))
            await send_file(conn, file, length)

        return stream

    async def _patch_log(self, call: Call, request: proto.GetVmLastPatchLogRequest) -> Stream:
        """Of a VM that another agent, whose state this is, has patched."""
        conn = call.conn
        vm = self._agent.vm(request.ip_address)
        roots = [Path(volume.filename) for volume in vm.record.volume_locations[:1]]
        try:
            file, length = await open_file(roots[0].with_name(PATCH_LOG))
        except (FileNotFoundError, IndexError):
            raise RequestError(detail="the VM was never patched") from None
        patched = Time.from_nanoseconds(os.fstat(file.fileno()).st_mtime_ns)

        async def stream() -> None:
            conn.encode(proto.GetVmLastPatchLogResponse(length=length, patch_time=patched))
            await send_file(conn, file, length)

        return stream


def _logs(vm: Vm) -> dict[str, int]:
    """Bytes of what QEMU said, by the file's name: now, and at the boot before. Blocks."""
    paths = [vm.directory.path / name for name in LOGS]
    return {path.name: path.stat().st_size for path in paths if path.is_file()}


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
