"""Messages of the Hypervisor service, in the order of their wire fields.

Times are in nanoseconds, sizes in bytes. An empty ``error`` in a reply is success. Records and
enumerations are in ``proto.vm`` and ``proto.enums``.
"""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import Annotated, ClassVar

from msgspec import field

from smallstack.proto.enums import (
    ArchitectureType,
    ConsoleType,
    MachineType,
    VolumeFormat,
    VolumeInterface,
)
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.image import Filter
from smallstack.proto.kinds import (
    IP,
    Duration,
    Embedded,
    Int,
    Int64,
    MatchTags,
    Message,
    Named,
    Omit,
    Pointed,
    Tags,
    Time,
    Uint,
    Uint64,
)
from smallstack.proto.vm import (
    Address,
    ExportLocalVmInfo,
    StorageInfo,
    Subnet,
    VmInfo,
    Volume,
    VolumeInitialisationInfo,
)


class AcknowledgeVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.AcknowledgeVm``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class AcknowledgeVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.AcknowledgeVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class AddVmVolumesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.AddVmVolumes``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    volume_sizes: list[Uint64] = []


class AddVmVolumesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.AddVmVolumes``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class BecomePrimaryVmOwnerRequest(Message, kw_only=True):
    """Request of ``Hypervisor.BecomePrimaryVmOwner``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class BecomePrimaryVmOwnerResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.BecomePrimaryVmOwner``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeAddressPoolRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeAddressPool``."""

    go_package: ClassVar[str] = "hypervisor"
    addresses_to_add: list[Address] = []
    addresses_to_remove: list[Address] = []
    maximum_free_addresses: dict[str, Uint] = {}


class ChangeAddressPoolResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeAddressPool``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeOwnersRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeOwners``."""

    go_package: ClassVar[str] = "hypervisor"
    owner_groups: Omit[list[str]] = []
    owner_users: Omit[list[str]] = []


class ChangeOwnersResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeOwners``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmConsoleTypeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmConsoleType``."""

    go_package: ClassVar[str] = "hypervisor"
    console_type: ConsoleType = ConsoleType.NONE
    ip_address: IP = ""


class ChangeVmConsoleTypeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmConsoleType``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmCpuPriorityRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmCpuPriority``."""

    go_package: ClassVar[str] = "hypervisor"
    cpu_priority: Int = 0
    ip_address: IP = ""


class ChangeVmCpuPriorityResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmCpuPriority``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmDestroyProtectionRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmDestroyProtection``."""

    go_package: ClassVar[str] = "hypervisor"
    destroy_protection: bool = False
    ip_address: IP = ""


class ChangeVmDestroyProtectionResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmDestroyProtection``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmHostnameRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmHostname``."""

    go_package: ClassVar[str] = "hypervisor"
    hostname: str = ""
    ip_address: IP = ""


class ChangeVmHostnameResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmHostname``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmMachineTypeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmMachineType``."""

    go_package: ClassVar[str] = "hypervisor"
    machine_type: MachineType = MachineType.AUTO
    ip_address: IP = ""


class ChangeVmMachineTypeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmMachineType``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmNumNetworkQueuesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmNumNetworkQueues``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    num_queues_per_interface: list[Uint] = []


class ChangeVmNumNetworkQueuesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmNumNetworkQueues``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmOwnerGroupsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmOwnerGroups``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    owner_groups: list[str] = []


class ChangeVmOwnerGroupsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmOwnerGroups``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmOwnerUsersRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmOwnerUsers``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    owner_users: list[str] = []


class ChangeVmOwnerUsersResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmOwnerUsers``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmSizeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmSize``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    memory_in_mib: Uint64 = 0
    milli_cpus: Uint = 0
    virtual_cpus: Uint = 0


class ChangeVmSubnetRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmSubnet``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    subnet_id: str = ""


class ChangeVmSubnetResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmSubnet``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    new_ip_address: IP = ""
    old_identity_name: str = ""


class ChangeVmSizeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmSize``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmTagsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmTags``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    tags: Tags = {}


class ChangeVmTagsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmTags``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmVolumeInterfacesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeInterfaces``."""

    go_package: ClassVar[str] = "hypervisor"
    interfaces: list[VolumeInterface] = []
    ip_address: IP = ""


class ChangeVmVolumeInterfacesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmVolumeInterfaces``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmVolumeSizeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeSize``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    volume_index: Uint = 0
    volume_size: Uint64 = 0


class ChangeVmVolumeSizeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmVolumeSize``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ChangeVmVolumeStorageIndexRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeStorageIndex``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    storage_index: Uint = 0
    volume_index: Uint = 0


class ChangeVmVolumeStorageIndexResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ChangeVmVolumeStorageIndex``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class CommitImportedVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.CommitImportedVm``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class CommitImportedVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.CommitImportedVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ConnectToVmConsoleRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmConsole``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class ConnectToVmConsoleResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ConnectToVmConsole``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ConnectToVmManagerRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmManager``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class ConnectToVmManagerResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ConnectToVmManager``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ConnectToVmSerialPortRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmSerialPort``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    port_number: Uint = 0


class ConnectToVmSerialPortResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ConnectToVmSerialPort``; raw bytes follow, both ways."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class CopyVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.CopyVm``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""
    skip_memory_check: bool = False
    source_hypervisor: str = ""
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)


class CopyVmResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.CopyVm``: several, the last one has ``final`` set."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    final: bool = False
    ip_address: IP = ""
    progress_message: str = ""


class CreateVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.CreateVm``.

    Behind it come, in this order: the raw image (``image_data_size`` bytes), the user data
    (``user_data_size`` bytes), and the secondary volumes when ``secondary_volumes_data`` is set.
    ``dhcp_timeout`` in ns: below 0 no DHCP, 0 no wait, above 0 the time to wait for the lease.
    """

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timeout: Omit[Duration] = 0
    do_not_start: Omit[bool] = False
    enable_netboot: Omit[bool] = False
    identity_certificate: Omit[bytes] = b""
    identity_key: Omit[bytes] = b""
    image_data_size: Omit[Uint64] = 0
    image_timeout: Omit[Duration] = 0
    minimum_free_bytes: Omit[Uint64] = 0
    overlay_directories: Omit[list[str]] = []
    overlay_files: Omit[dict[str, bytes]] = {}
    roundup_power: Omit[Uint64] = 0
    secondary_volumes: Omit[list[Volume]] = []
    secondary_volumes_data: Omit[bool] = False
    secondary_volumes_init: Omit[list[VolumeInitialisationInfo]] = []
    skip_bootloader: Omit[bool] = False
    skip_memory_check: Omit[bool] = False
    storage_indices: Omit[list[Uint]] = []
    user_data_size: Omit[Uint64] = 0
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)


class TimelinePhase(Message, kw_only=True):
    """A stretch of time in a create, by the agent's monotonic clock; ours alone."""

    go_package: ClassVar[str] = "hypervisor"
    name: str = ""
    start_nanoseconds: Int64 = 0
    duration_nanoseconds: Int64 = 0


class CreateVmResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.CreateVm``: several, the last one has ``final`` set.

    ``timeline`` comes with the last one; it is ours, other implementations skip it.
    """

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timed_out: bool = False
    final: bool = False
    ip_address: IP = ""
    progress_message: str = ""
    error: str = ""
    timeline: Omit[list[TimelinePhase]] = []


class DebugVmImageRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DebugVmImage``."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timeout: Duration = 0
    image_data_size: Uint64 = 0
    image_name: str = ""
    image_timeout: Duration = 0
    image_url: str = ""
    ip_address: IP = ""
    minimum_free_bytes: Uint64 = 0
    overlay_files: dict[str, bytes] = {}
    roundup_power: Uint64 = 0


class DebugVmImageResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.DebugVmImage``: several, the last one has ``final`` set."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timed_out: bool = False
    final: bool = False
    progress_message: str = ""
    error: str = ""


class DeleteVmVolumeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DeleteVmVolume``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""
    volume_index: Uint = 0


class DeleteVmVolumeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DeleteVmVolume``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class DestroyVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DestroyVm``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""


class DestroyVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DestroyVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class DiscardVmAccessTokenRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DiscardVmAccessToken``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""


class DiscardVmAccessTokenResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DiscardVmAccessToken``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class DiscardVmOldImageRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DiscardVmOldImage``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class DiscardVmOldImageResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DiscardVmOldImage``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class DiscardVmOldUserDataRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DiscardVmOldUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class DiscardVmOldUserDataResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DiscardVmOldUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class DiscardVmSnapshotRequest(Message, kw_only=True):
    """Request of ``Hypervisor.DiscardVmSnapshot``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    name: str = ""


class DiscardVmSnapshotResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.DiscardVmSnapshot``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ExportLocalVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ExportLocalVm``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    verification_cookie: Omit[bytes] = b""


class ExportLocalVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ExportLocalVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    vm_info: ExportLocalVmInfo = field(default_factory=ExportLocalVmInfo)


class GetCapacityRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetCapacity``."""

    go_package: ClassVar[str] = "hypervisor"


class GetCapacityResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetCapacity``."""

    go_package: ClassVar[str] = "hypervisor"
    error: Omit[str] = ""
    available_memory_in_mib: Omit[Uint64] = 0
    memory_in_mib: Omit[Uint64] = 0
    num_cpus: Omit[Uint] = 0
    total_volume_bytes: Omit[Uint64] = 0


class GetIdentityProviderRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetIdentityProvider``."""

    go_package: ClassVar[str] = "hypervisor"


class GetIdentityProviderResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetIdentityProvider``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    base_url: str = ""


class GetPublicKeyRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetPublicKey``."""

    go_package: ClassVar[str] = "hypervisor"


class GetPublicKeyResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetPublicKey``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    key_pem: bytes = b""


class GetRootCookiePathRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetRootCookiePath``."""

    go_package: ClassVar[str] = "hypervisor"


class GetRootCookiePathResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetRootCookiePath``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    path: str = ""


class RegisterExternalLeasesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.RegisterExternalLeases``."""

    go_package: ClassVar[str] = "hypervisor"
    addresses: Annotated[list[Address], Named("hypervisor", "AddressList")] = []
    hostnames: Omit[list[str]] = []


class GetUpdatesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetUpdates``."""

    go_package: ClassVar[str] = "hypervisor"
    register_external_leases_request: RegisterExternalLeasesRequest | None = None


class Update(Message, kw_only=True):
    """One message of ``Hypervisor.GetUpdates``: the whole state first, then what changed.

    A VM that is gone comes as an all-zero VmInfo: it has no volumes.
    """

    go_package: ClassVar[str] = "hypervisor"
    have_address_pool: Omit[bool] = False
    address_pool: Omit[list[Address]] = []
    architecture_type: Omit[ArchitectureType] = ArchitectureType.AUTO
    available_memory_in_mib: Omit[Uint64 | None] = None
    have_disabled: Omit[bool] = False
    disabled: Omit[bool] = False
    memory_in_mib: Omit[Uint64 | None] = None
    num_cpus: Omit[Uint | None] = None
    num_free_addresses: Omit[dict[str, Uint]] = {}
    health_status: Omit[str] = ""
    have_serial_number: Omit[bool] = False
    serial_number: Omit[str] = ""
    have_subnets: Omit[bool] = False
    subnets: Omit[list[Subnet]] = []
    total_volume_bytes: Omit[Uint64 | None] = None
    have_vms: Omit[bool] = False
    vms: Omit[dict[str, Pointed[VmInfo]]] = {}


class GetVmAccessTokenRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmAccessToken``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    lifetime: Duration = 0


class GetVmAccessTokenResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmAccessToken``."""

    go_package: ClassVar[str] = "hypervisor"
    token: Omit[bytes] = b""
    error: str = ""


class GetVmCreateRequestRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmCreateRequest``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class GetVmCreateRequestResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmCreateRequest``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    create_vm_request: CreateVmRequest = field(default_factory=CreateVmRequest)


class GetVmInfoRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmInfo``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class GetVmInfoResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmInfo``."""

    go_package: ClassVar[str] = "hypervisor"
    vm_info: VmInfo = field(default_factory=VmInfo)
    error: str = ""


class GetVmInfosRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmInfos``; bit n of the mask hides VMs in state n."""

    go_package: ClassVar[str] = "hypervisor"
    ignore_state_mask: Uint64 = 0
    owner_groups: list[str] = []
    owner_users: list[str] = []
    vm_tags_to_match: MatchTags = {}


class GetVmInfosResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmInfos``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    vm_infos: list[VmInfo] = []


class GetVmLastPatchLogRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmLastPatchLog``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class GetVmLastPatchLogResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmLastPatchLog``; ``length`` bytes follow it."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    length: Uint64 = 0
    patch_time: Time = Time()


class GetVmUserDataRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""


class GetVmUserDataResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmUserData``; ``length`` bytes follow it."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    length: Uint64 = 0


class GetVmVirtualiserLogFileRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmVirtualiserLogFile``."""

    go_package: ClassVar[str] = "hypervisor"
    filename: str = ""
    ip_address: IP = ""


class GetVmVirtualiserLogFileResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmVirtualiserLogFile``; ``length`` bytes follow it."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    length: Uint64 = 0


class GetVmVolumeRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmVolume``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    get_extra_files: bool = False
    ignore_extra_files: bool = False
    ip_address: IP = ""
    volume_index: Uint = 0


class GetVmVolumeResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmVolume``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    extra_files: dict[str, bytes] = {}


class GetVmVolumeStorageConfigurationRequest(Message, kw_only=True):
    """Request of ``Hypervisor.GetVmVolumeStorageConfiguration``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class GetVmVolumeStorageConfigurationResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.GetVmVolumeStorageConfiguration``."""

    go_package: ClassVar[str] = "hypervisor"
    error: Omit[str] = ""
    storage_infos: Omit[list[StorageInfo]] = []
    volume_storage_indices: Omit[list[Uint]] = []


class HoldLockRequest(Message, kw_only=True):
    """Request of ``Hypervisor.HoldLock``."""

    go_package: ClassVar[str] = "hypervisor"
    timeout: Duration = 0
    write_lock: bool = False


class HoldLockResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.HoldLock``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class HoldVmLockRequest(Message, kw_only=True):
    """Request of ``Hypervisor.HoldVmLock``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    timeout: Duration = 0
    write_lock: bool = False


class HoldVmLockResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.HoldVmLock``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ListSubnetsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ListSubnets``."""

    go_package: ClassVar[str] = "hypervisor"
    sort: bool = False


class ListSubnetsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ListSubnets``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    subnets: Omit[list[Subnet]] = []


class ImportLocalVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ImportLocalVm``."""

    go_package: ClassVar[str] = "hypervisor"
    skip_memory_check: bool = False
    verification_cookie: Omit[bytes] = b""
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)
    volume_filenames: list[str] = []


class ImportLocalVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ImportLocalVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ListVMsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ListVMs``; bit n of the mask hides VMs in state n."""

    go_package: ClassVar[str] = "hypervisor"
    ignore_state_mask: Uint64 = 0
    owner_groups: list[str] = []
    owner_users: list[str] = []
    sort: bool = False
    vm_tags_to_match: MatchTags = {}


class ListVMsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ListVMs``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_addresses: list[IP] = []


class ListVmVirtualiserLogFilesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ListVmVirtualiserLogFiles``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class ListVmVirtualiserLogFilesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ListVmVirtualiserLogFiles``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    filenames: list[str] = []
    lengths: list[Uint64] = []


class ListVolumeDirectoriesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ListVolumeDirectories``."""

    go_package: ClassVar[str] = "hypervisor"


class ListVolumeDirectoriesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ListVolumeDirectories``."""

    go_package: ClassVar[str] = "hypervisor"
    directories: list[str] = []
    error: str = ""


class MigrateVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.MigrateVm``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    dhcp_timeout: Duration = 0
    ip_address: IP = ""
    skip_memory_check: bool = False
    source_hypervisor: str = ""


class MigrateVmResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.MigrateVm``; ``request_commit`` asks for a
    MigrateVmResponseResponse.
    """

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    final: bool = False
    progress_message: str = ""
    request_commit: bool = False


class MigrateVmResponseResponse(Message, kw_only=True):
    """The client's word on whether a migration is to be committed."""

    go_package: ClassVar[str] = "hypervisor"
    commit: bool = False


class NetbootMachineRequest(Message, kw_only=True):
    """Request of ``Hypervisor.NetbootMachine``."""

    go_package: ClassVar[str] = "hypervisor"
    address: Address = field(default_factory=Address)
    files: dict[str, bytes] = {}
    files_expiration: Duration = 0
    hostname: str = ""
    num_acknowledgements_to_wait_for: Uint = 0
    offer_expiration: Duration = 0
    subnet: Subnet | None = None
    wait_timeout: Duration = 0


class NetbootMachineResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.NetbootMachine``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class PatchVmImageRequest(Message, kw_only=True):
    """Request of ``Hypervisor.PatchVmImage``."""

    go_package: ClassVar[str] = "hypervisor"
    image_name: str = ""
    image_timeout: Duration = 0
    ip_address: IP = ""
    overlay_files: dict[str, bytes] = {}
    skip_backup: bool = False


class PatchVmImageResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.PatchVmImage``: several, the last one has ``final`` set."""

    go_package: ClassVar[str] = "hypervisor"
    final: bool = False
    progress_message: str = ""
    error: str = ""


class PowerOffRequest(Message, kw_only=True):
    """Request of ``Hypervisor.PowerOff``."""

    go_package: ClassVar[str] = "hypervisor"
    stop_vms: bool = False


class PowerOffResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.PowerOff``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class PrepareVmForMigrationRequest(Message, kw_only=True):
    """Request of ``Hypervisor.PrepareVmForMigration``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    enable: bool = False
    ip_address: IP = ""


class PrepareVmForMigrationResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.PrepareVmForMigration``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ProbeVmPortRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ProbeVmPort``; ``timeout`` in ns."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    port_number: Uint = 0
    timeout: Duration = 0


class ProbeVmPortResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ProbeVmPort``."""

    go_package: ClassVar[str] = "hypervisor"
    port_is_open: bool = False
    error: str = ""


class RebootVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.RebootVm``."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timeout: Duration = 0
    ip_address: IP = ""


class RebootVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.RebootVm``."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timed_out: bool = False
    error: str = ""


class RegisterExternalLeasesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.RegisterExternalLeases``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ReplaceVmCredentialsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmCredentials``."""

    go_package: ClassVar[str] = "hypervisor"
    identity_certificate: bytes = b""
    identity_key: bytes = b""
    ip_address: IP = ""


class ReplaceVmCredentialsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ReplaceVmCredentials``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ReplaceVmIdentityRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmIdentity``."""

    go_package: ClassVar[str] = "hypervisor"
    identity_requestor_certificate: bytes = b""
    ip_address: IP = ""


class ReplaceVmIdentityResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ReplaceVmIdentity``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ReplaceVmImageRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmImage``."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timeout: Duration = 0
    image_data_size: Uint64 = 0
    image_name: Omit[str] = ""
    image_timeout: Duration = 0
    image_url: Omit[str] = ""
    ip_address: IP = ""
    minimum_free_bytes: Uint64 = 0
    overlay_files: dict[str, bytes] = {}
    pre_delete: bool = False
    roundup_power: Uint64 = 0
    skip_backup: bool = False
    skip_bootloader: bool = False
    volume_format: Omit[VolumeFormat] = VolumeFormat.RAW


class ReplaceVmImageResponse(Message, kw_only=True):
    """Replies of ``Hypervisor.ReplaceVmImage``: several, the last one has ``final`` set."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timed_out: bool = False
    final: bool = False
    progress_message: str = ""
    error: str = ""


class ReplaceVmUserDataRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmUserData``; ``size`` bytes of user data follow it."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    size: Uint64 = 0


class ReplaceVmUserDataResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ReplaceVmUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class RestoreVmFromSnapshotRequest(Message, kw_only=True):
    """Request of ``Hypervisor.RestoreVmFromSnapshot``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    force_if_not_stopped: bool = False
    name: str = ""
    retain: bool = False


class RestoreVmFromSnapshotResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.RestoreVmFromSnapshot``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class RestoreVmImageRequest(Message, kw_only=True):
    """Request of ``Hypervisor.RestoreVmImage``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class RestoreVmImageResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.RestoreVmImage``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class RestoreVmUserDataRequest(Message, kw_only=True):
    """Request of ``Hypervisor.RestoreVmUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class RestoreVmUserDataResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.RestoreVmUserData``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ReorderVmVolumesRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ReorderVmVolumes``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""
    volume_indices: list[Uint] = []


class ReorderVmVolumesResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ReorderVmVolumes``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class ScanVmRootRequest(Message, kw_only=True):
    """Request of ``Hypervisor.ScanVmRoot``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    filter: Filter | None = None


class ScanVmRootResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.ScanVmRoot``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    file_system: FileSystem | None = None


class SetDisabledStateRequest(Message, kw_only=True):
    """Request of ``Hypervisor.SetDisabledState``."""

    go_package: ClassVar[str] = "hypervisor"
    disable: bool = False


class SetDisabledStateResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.SetDisabledState``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class SnapshotVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.SnapshotVm``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""
    force_if_not_stopped: bool = False
    name: str = ""
    root_only: bool = False


class SnapshotVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.SnapshotVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class StartVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.StartVm``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    dhcp_timeout: Duration = 0
    ip_address: IP = ""


class StartVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.StartVm``."""

    go_package: ClassVar[str] = "hypervisor"
    dhcp_timed_out: bool = False
    error: str = ""


class StopVmRequest(Message, kw_only=True):
    """Request of ``Hypervisor.StopVm``."""

    go_package: ClassVar[str] = "hypervisor"
    access_token: bytes = b""
    ip_address: IP = ""


class StopVmResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.StopVm``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class TraceVmMetadataRequest(Message, kw_only=True):
    """Request of ``Hypervisor.TraceVmMetadata``."""

    go_package: ClassVar[str] = "hypervisor"
    ip_address: IP = ""


class TraceVmMetadataResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.TraceVmMetadata``; paths follow, one a line."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class UpdateSubnetsRequest(Message, kw_only=True):
    """Request of ``Hypervisor.UpdateSubnets``."""

    go_package: ClassVar[str] = "hypervisor"
    add: list[Subnet] = []
    change: list[Subnet] = []
    delete: list[str] = []


class UpdateSubnetsResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.UpdateSubnets``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""


class WatchDhcpRequest(Message, kw_only=True):
    """Request of ``Hypervisor.WatchDhcp``."""

    go_package: ClassVar[str] = "hypervisor"
    interface: str = ""
    max_packets: Uint64 = 0


class WatchDhcpResponse(Message, kw_only=True):
    """Reply of ``Hypervisor.WatchDhcp``."""

    go_package: ClassVar[str] = "hypervisor"
    error: str = ""
    interface: str = ""
    packet: bytes = b""
