"""Records of the Hypervisor service: a VM, its volumes and addresses, a subnet."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from msgspec import field

from smallstack.proto.enums import (
    ArchitectureType,
    ConsoleType,
    FirmwareType,
    MachineType,
    State,
    VolumeFormat,
    VolumeInterface,
    VolumeType,
    WatchdogAction,
    WatchdogModel,
)
from smallstack.proto.hypervisor.base import HypervisorMessage
from smallstack.proto.kinds import (
    IP,
    Embedded,
    Int,
    Omit,
    Tags,
    Time,
    Uint,
    Uint16,
    Uint32,
    Uint64,
)


class Address(HypervisorMessage, kw_only=True):
    """An IP address with its MAC address; a VM's first one is its name."""

    ip_address: Omit[IP] = ""
    mac_address: str = ""


class NetworkEntry(HypervisorMessage, kw_only=True):
    """What a VM's network interface has of its own."""

    num_queues: Omit[Uint] = 0


class DfmParams(HypervisorMessage, kw_only=True):
    """Parameters of a volume on a device-feature-model interface."""

    nvram_size: Omit[Uint64] = 0
    profile: Omit[str] = ""


class Volume(HypervisorMessage, kw_only=True):
    """A disk of a VM; sizes in bytes. The first volume is the root."""

    dfm: Omit[DfmParams] = field(default_factory=DfmParams)
    format: Omit[VolumeFormat] = VolumeFormat.RAW
    interface: Omit[VolumeInterface] = VolumeInterface.VIRTIO
    size: Omit[Uint64] = 0
    snapshots: Omit[dict[str, Uint64]] = {}
    type: Omit[VolumeType] = VolumeType.PERSISTENT
    virtual_size: Omit[Uint64] = 0


class VmInfo(HypervisorMessage, kw_only=True):
    """All that is known of a VM, and all that its creator can ask for."""

    address: Address = field(default_factory=Address)
    architecture_type: Omit[ArchitectureType] = ArchitectureType.AUTO
    changed_state_on: Omit[Time] = Time()
    console_type: Omit[ConsoleType] = ConsoleType.NONE
    created_on: Omit[Time] = Time()
    cpu_priority: Omit[Int] = 0
    destroy_on_powerdown: Omit[bool] = False
    destroy_protection: Omit[bool] = False
    disable_virtio: Omit[bool] = False
    extra_kernel_options: Omit[str] = ""
    firmware_type: Omit[FirmwareType] = FirmwareType.DEFAULT
    hostname: Omit[str] = ""
    identity_expires: Omit[Time] = Time()
    identity_name: Omit[str] = ""
    image_name: Omit[str] = ""
    image_url: Omit[str] = ""
    machine_type: Omit[MachineType] = MachineType.AUTO
    memory_in_mib: Uint64 = 0
    milli_cpus: Uint = 0
    network_entries: Omit[list[NetworkEntry]] = []
    owner_groups: Omit[list[str]] = []
    owner_users: Omit[list[str]] = []
    root_file_system_label: Omit[str] = ""
    spread_volumes: Omit[bool] = False
    state: State = State.STARTING
    secondary_addresses: Omit[list[Address]] = []
    secondary_subnet_ids: Omit[list[str]] = []
    subnet_id: Omit[str] = ""
    tags: Omit[Tags] = {}
    uncommitted: Omit[bool] = False
    virtual_cpus: Omit[Uint] = 0
    virtualiser_image_name: Omit[str] = ""
    volumes: Omit[list[Volume]] = []
    watchdog_action: Omit[WatchdogAction] = WatchdogAction.NONE
    watchdog_model: Omit[WatchdogModel] = WatchdogModel.NONE


class VolumeInitialisationInfo(HypervisorMessage, kw_only=True):
    """How a fresh secondary volume is formatted."""

    bytes_per_inode: Uint64 = 0
    label: str = ""
    reserved_blocks_percentage: Uint16 = 0
    root_group_id: Uint32 = 0
    root_user_id: Uint32 = 0


class Subnet(HypervisorMessage, kw_only=True):
    """A network that VMs can be in; ``ip_mask`` is written as an address."""

    id: str = ""
    ip_gateway: IP = ""
    ip_mask: IP = ""
    domain_name: Omit[str] = ""
    domain_name_servers: list[IP] = []
    disable_metadata: Omit[bool] = False
    manage: Omit[bool] = False
    vlan_id: Omit[Uint] = 0
    allowed_groups: Omit[list[str]] = []
    allowed_users: Omit[list[str]] = []
    first_dynamic_ip: Omit[IP] = ""
    last_dynamic_ip: Omit[IP] = ""
    tags: Omit[Tags] = {}


class StorageInfo(HypervisorMessage, kw_only=True):
    """Space on one volume directory, in bytes."""

    available_bytes: Uint64 = 0
    free_bytes: Uint64 = 0
    size_bytes: Uint64 = 0
    usable_bytes: Uint64 = 0


class LocalVolume(HypervisorMessage, kw_only=True):
    """Where a volume of an exported VM lies on this machine."""

    directory_to_cleanup: str = ""
    filename: str = ""


class LocalVmInfo(HypervisorMessage, kw_only=True):
    """A VM with the places of its volumes."""

    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)
    volume_locations: list[LocalVolume] = []


class ExportLocalVmInfo(HypervisorMessage, kw_only=True):
    """A VM handed over to another agent on the same machine."""

    bridges: list[str] = []
    local_vm_info: Embedded[LocalVmInfo] = field(default_factory=LocalVmInfo)
