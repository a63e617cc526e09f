"""Looking at VMs and at the machine: lists, records, logs, ports."""

import asyncio
from collections.abc import Mapping

from smallstack.hypervisor.errors import RequestError
from smallstack.hypervisor.filters import matches, version_sorted
from smallstack.hypervisor.methods import base
from smallstack.hypervisor.methods.base import NANOSECONDS, Methods, answering
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler

PROBE_INTERVAL = 0.25
PROBE_TIMEOUT = 1.0
"""Seconds between attempts to connect to a VM's port, and for one of them."""


class Looking(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "GetCapacity": answering(self._capacity),
            "GetVmInfo": answering(self._info),
            "GetVmInfos": answering(self._infos),
            "ListVMs": self._list,
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
