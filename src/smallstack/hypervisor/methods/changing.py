"""Changing what a VM is: its name, tags, size, devices.

Some of it takes effect at once, the rest is for the next start; that needs a stopped VM.
"""

from collections.abc import Callable, Mapping
from typing import Any

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.checks import check_hostname, check_known, check_priority
from smallstack.hypervisor.errors import RequestError
from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.hypervisor.specs import check_supported, processors
from smallstack.hypervisor.subnet_change import change_subnet
from smallstack.hypervisor.vm import Vm
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.vm import LocalVmInfo, NetworkEntry, VmInfo
from smallstack.srpc.server import Call, Handler
from smallstack.steps import PointHook

MAX_QUEUES = 256
"""Of one network interface: as many as a tap has."""


class Changing(Methods):
    """The methods; the steps of a change of the subnet are told to ``on_point``."""

    def __init__(self, agent: Agent, on_point: PointHook | None = None) -> None:
        super().__init__(agent)
        self._on_point = on_point

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ChangeVmConsoleType": answering(self._console),
            "ChangeVmCpuPriority": answering(self._priority),
            "ChangeVmDestroyProtection": answering(self._protection),
            "ChangeVmHostname": answering(self._hostname),
            "ChangeVmMachineType": answering(self._machine),
            "ChangeVmNumNetworkQueues": answering(self._queues),
            "ChangeVmSize": answering(self._size),
            "ChangeVmSubnet": answering(self._subnet),
            "ChangeVmTags": answering(self._tags),
            "ChangeVmVolumeInterfaces": answering(self._interfaces),
        }

    async def _tags(
        self, call: Call, request: proto.ChangeVmTagsRequest
    ) -> proto.ChangeVmTagsResponse:
        await self._set(call, request, "tags", request.tags)
        return proto.ChangeVmTagsResponse()

    async def _protection(
        self, call: Call, request: proto.ChangeVmDestroyProtectionRequest
    ) -> proto.ChangeVmDestroyProtectionResponse:
        await self._set(call, request, "destroy_protection", request.destroy_protection)
        return proto.ChangeVmDestroyProtectionResponse()

    async def _hostname(
        self, call: Call, request: proto.ChangeVmHostnameRequest
    ) -> proto.ChangeVmHostnameResponse:
        """The guest is told by its next DHCP request."""
        check_hostname(request.hostname)
        vm = await self._set(call, request, "hostname", request.hostname)
        self._agent.parts.wiring.rename(vm.info)
        return proto.ChangeVmHostnameResponse()

    async def _priority(
        self, call: Call, request: proto.ChangeVmCpuPriorityRequest
    ) -> proto.ChangeVmCpuPriorityResponse:
        vm = self._mine(call, request.ip_address)
        check_priority(request.cpu_priority, call.peer)
        await vm.change(_edit(lambda info: _assign(info, "cpu_priority", request.cpu_priority)))
        await self._agent.reweigh(vm)
        return proto.ChangeVmCpuPriorityResponse()

    async def _console(
        self, call: Call, request: proto.ChangeVmConsoleTypeRequest
    ) -> proto.ChangeVmConsoleTypeResponse:
        check_known(request.console_type)
        await self._set(call, request, "console_type", request.console_type, stopped=True)
        return proto.ChangeVmConsoleTypeResponse()

    async def _machine(
        self, call: Call, request: proto.ChangeVmMachineTypeRequest
    ) -> proto.ChangeVmMachineTypeResponse:
        check_known(request.machine_type)

        def change(info: VmInfo) -> None:
            info.machine_type = request.machine_type
            check_supported(info)

        vm = self._mine(call, request.ip_address)
        await vm.change(_edit(change), stopped=True)
        return proto.ChangeVmMachineTypeResponse()

    async def _queues(
        self, call: Call, request: proto.ChangeVmNumNetworkQueuesRequest
    ) -> proto.ChangeVmNumNetworkQueuesResponse:
        queues = request.num_queues_per_interface

        def change(info: VmInfo) -> None:
            interfaces = 1 + len(info.secondary_addresses)
            if len(queues) != interfaces:
                raise RequestError(
                    detail=f"{len(queues)} numbers of queues for {interfaces} network interfaces"
                )
            info.network_entries = [NetworkEntry(num_queues=count) for count in queues]

        vm = self._mine(call, request.ip_address)
        if any(count > MAX_QUEUES for count in queues):
            raise RequestError(detail=f"an interface has {MAX_QUEUES} queues at most")
        await vm.change(_edit(change), stopped=True)
        return proto.ChangeVmNumNetworkQueuesResponse()

    async def _interfaces(
        self, call: Call, request: proto.ChangeVmVolumeInterfacesRequest
    ) -> proto.ChangeVmVolumeInterfacesResponse:
        def change(info: VmInfo) -> None:
            if len(request.interfaces) != len(info.volumes):
                raise RequestError(
                    detail=f"{len(request.interfaces)} interfaces for {len(info.volumes)} volumes"
                )
            for volume, interface in zip(info.volumes, request.interfaces, strict=True):
                volume.interface = interface
            check_supported(info)

        vm = self._mine(call, request.ip_address)
        check_known(*request.interfaces)
        await vm.change(_edit(change), stopped=True)
        return proto.ChangeVmVolumeInterfacesResponse()

    async def _size(
        self, call: Call, request: proto.ChangeVmSizeRequest
    ) -> proto.ChangeVmSizeResponse:
        """What is 0 stays. While the VM runs it keeps its memory and its processors; its share of
        the machine's may change."""
        vm = self._mine(call, request.ip_address)
        ledger = self._agent.parts.ledger
        most = self._agent.parts.emulator.processors

        def change(info: VmInfo) -> None:
            before = processors(info)
            info.memory_in_mib = request.memory_in_mib or info.memory_in_mib
            info.milli_cpus = request.milli_cpus or info.milli_cpus
            if request.virtual_cpus:
                least = -(-info.milli_cpus // 1000)
                if request.virtual_cpus < least:
                    raise RequestError(detail=f"VirtualCPUs must be at least {least}")
                if request.virtual_cpus > most:
                    raise RequestError(
                        detail=f"VirtualCPUs: {request.virtual_cpus}: this machine has {most} "
                        "processors"
                    )
                info.virtual_cpus = request.virtual_cpus
            if request.memory_in_mib or processors(info) != before:
                vm.require_stopped()
            ledger.resize(vm.ip, info)

        async def work() -> None:
            before = vm.info
            try:
                await vm.replace_record(_edit(change))
            except BaseException:
                ledger.resize(vm.ip, before)
                raise

        await vm.apply(work)
        await self._agent.reweigh(vm)
        return proto.ChangeVmSizeResponse()

    async def _subnet(
        self, call: Call, request: proto.ChangeVmSubnetRequest
    ) -> proto.ChangeVmSubnetResponse:
        vm = self._mine(call, request.ip_address)
        identity = vm.info.identity_name
        await change_subnet(self._agent, vm, request.subnet_id, call.peer, self._on_point)
        return proto.ChangeVmSubnetResponse(new_ip_address=vm.ip, old_identity_name=identity)

    async def _set(
        self, call: Call, request: Any, name: str, value: object, *, stopped: bool = False
    ) -> Vm:
        """Change one field of a VM that is the caller's."""
        vm = self._mine(call, request.ip_address)
        await vm.change(_edit(lambda info: _assign(info, name, value)), stopped=stopped)
        return vm


def _assign(info: VmInfo, name: str, value: object) -> None:
    setattr(info, name, value)


def _edit(change: Callable[[VmInfo], None]) -> Callable[[LocalVmInfo], None]:
    """A change of what travels."""

    def edit(record: LocalVmInfo) -> None:
        change(record.vm_info)

    return edit
