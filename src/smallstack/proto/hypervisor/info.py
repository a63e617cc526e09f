"""What is known of VMs: lists, records, logs."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from msgspec import field

from smallstack.proto.hypervisor.base import HypervisorMessage
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.proto.kinds import IP, MatchTags, Time, Uint64
from smallstack.proto.vm import VmInfo


class GetVmCreateRequestRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmCreateRequest``."""

    ip_address: IP = ""


class GetVmCreateRequestResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmCreateRequest``."""

    error: str = ""
    create_vm_request: CreateVmRequest = field(default_factory=CreateVmRequest)


class GetVmInfoRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmInfo``."""

    ip_address: IP = ""


class GetVmInfoResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmInfo``."""

    vm_info: VmInfo = field(default_factory=VmInfo)
    error: str = ""


class GetVmInfosRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmInfos``; bit n of the mask hides VMs in state n."""

    ignore_state_mask: Uint64 = 0
    """Bit n hides VMs in state n."""
    owner_groups: list[str] = []
    owner_users: list[str] = []
    """When given, `owner_groups` do not count."""
    vm_tags_to_match: MatchTags = {}
    """Every key must have one of its values."""


class GetVmInfosResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmInfos``."""

    error: str = ""
    vm_infos: list[VmInfo] = []


class GetVmLastPatchLogRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmLastPatchLog``."""

    ip_address: IP = ""


class GetVmLastPatchLogResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmLastPatchLog``; ``length`` bytes follow it."""

    error: str = ""
    length: Uint64 = 0
    patch_time: Time = Time()


class GetVmVirtualiserLogFileRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmVirtualiserLogFile``."""

    filename: str = ""
    ip_address: IP = ""


class GetVmVirtualiserLogFileResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmVirtualiserLogFile``; ``length`` bytes follow it."""

    error: str = ""
    length: Uint64 = 0


class ListVMsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ListVMs``; bit n of the mask hides VMs in state n."""

    ignore_state_mask: Uint64 = 0
    """Bit n hides VMs in state n."""
    owner_groups: list[str] = []
    owner_users: list[str] = []
    """When given, `owner_groups` do not count."""
    sort: bool = False
    vm_tags_to_match: MatchTags = {}
    """Every key must have one of its values."""


class ListVMsResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ListVMs``."""

    ip_addresses: list[IP] = []


class ListVmVirtualiserLogFilesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ListVmVirtualiserLogFiles``."""

    ip_address: IP = ""


class ListVmVirtualiserLogFilesResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ListVmVirtualiserLogFiles``."""

    error: str = ""
    filenames: list[str] = []
    lengths: list[Uint64] = []
