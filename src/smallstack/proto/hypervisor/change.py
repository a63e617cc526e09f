"""Changing what a VM has: its size, name, tags, devices, subnet."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from smallstack.proto.enums import ConsoleType, MachineType
from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Int, Tags, Uint, Uint64


class ChangeVmConsoleTypeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmConsoleType``."""

    console_type: ConsoleType = ConsoleType.NONE
    ip_address: IP = ""


class ChangeVmConsoleTypeResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmConsoleType``."""


class ChangeVmCpuPriorityRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmCpuPriority``."""

    cpu_priority: Int = 0
    """A niceness: -20, which comes first, to 19."""
    ip_address: IP = ""


class ChangeVmCpuPriorityResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmCpuPriority``."""


class ChangeVmDestroyProtectionRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmDestroyProtection``."""

    destroy_protection: bool = False
    ip_address: IP = ""


class ChangeVmDestroyProtectionResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmDestroyProtection``."""


class ChangeVmHostnameRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmHostname``."""

    hostname: str = ""
    ip_address: IP = ""


class ChangeVmHostnameResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmHostname``."""


class ChangeVmMachineTypeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmMachineType``."""

    machine_type: MachineType = MachineType.AUTO
    ip_address: IP = ""


class ChangeVmMachineTypeResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmMachineType``."""


class ChangeVmNumNetworkQueuesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmNumNetworkQueues``."""

    ip_address: IP = ""
    num_queues_per_interface: list[Uint] = []


class ChangeVmNumNetworkQueuesResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmNumNetworkQueues``."""


class ChangeVmSizeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmSize``."""

    ip_address: IP = ""
    memory_in_mib: Uint64 = 0
    """0: as it is."""
    milli_cpus: Uint = 0
    """0: as it is."""
    virtual_cpus: Uint = 0
    """0: as it is."""


class ChangeVmSubnetRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmSubnet``."""

    ip_address: IP = ""
    subnet_id: str = ""


class ChangeVmSubnetResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmSubnet``."""

    error: str = ""
    new_ip_address: IP = ""
    old_identity_name: str = ""
    """The identity that the VM lost with its address."""


class ChangeVmSizeResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmSize``."""


class ChangeVmTagsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmTags``."""

    ip_address: IP = ""
    tags: Tags = {}


class ChangeVmTagsResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmTags``."""
