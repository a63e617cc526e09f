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
    """Empty where a DHCP server elsewhere gives it out."""
    mac_address: str = ""
    """Six pairs of hexadecimal digits with colons."""


class NetworkEntry(HypervisorMessage, kw_only=True):
    """What a VM's network interface has of its own."""

    num_queues: Omit[Uint] = 0
    """Of a virtio interface; 0: as many as the VM has processors."""


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
    """What the file holds; of QCOW2 less than its guest sees."""
    snapshots: Omit[dict[str, Uint64]] = {}
    """Name to bytes; the unnamed one has the name ""."""
    type: Omit[VolumeType] = VolumeType.PERSISTENT
    """Memory volumes are gone with the machine that holds them."""
    virtual_size: Omit[Uint64] = 0
    """What the guest sees, when that is not `size`."""


class VmInfo(HypervisorMessage, kw_only=True):
    """All that is known of a VM, and all that its creator can ask for."""

    address: Address = field(default_factory=Address)
    """The first interface's. Its IP address is the VM's name everywhere."""
    architecture_type: Omit[ArchitectureType] = ArchitectureType.AUTO
    changed_state_on: Omit[Time] = Time()
    """Set by the agent, as are `created_on`, `state` and `identity_expires`."""
    console_type: Omit[ConsoleType] = ConsoleType.NONE
    """A graphical console; the serial port is always there."""
    created_on: Omit[Time] = Time()
    cpu_priority: Omit[Int] = 0
    """A niceness: -20, which comes first, to 19."""
    destroy_on_powerdown: Omit[bool] = False
    """Destroy the VM when its guest powers down."""
    destroy_protection: Omit[bool] = False
    """A running VM that has this is not destroyed."""
    disable_virtio: Omit[bool] = False
    """Emulate devices that any guest knows: IDE disks, an e1000."""
    extra_kernel_options: Omit[str] = ""
    """Behind what the agent passes to the kernel."""
    firmware_type: Omit[FirmwareType] = FirmwareType.DEFAULT
    hostname: Omit[str] = ""
    """Letters, digits, `-` and `.`."""
    identity_expires: Omit[Time] = Time()
    """When the certificate of the identity does."""
    identity_name: Omit[str] = ""
    """The user that the VM is, by the certificate it was given."""
    image_name: Omit[str] = ""
    """Of an image, or of a directory whose newest image is meant; the record has the image."""
    image_url: Omit[str] = ""
    """Where a disk image is fetched; `#sha256=` and hexadecimal digits are checked."""
    machine_type: Omit[MachineType] = MachineType.AUTO
    memory_in_mib: Uint64 = 0
    milli_cpus: Uint = 0
    """The share of processors that is accounted for."""
    network_entries: Omit[list[NetworkEntry]] = []
    """One for each interface, as far as they differ from what is usual."""
    owner_groups: Omit[list[str]] = []
    """Members may do all that owners may."""
    owner_users: Omit[list[str]] = []
    """Who creates a VM is added first."""
    root_file_system_label: Omit[str] = ""
    """Empty: `rootfs@` and the IP address in hexadecimal."""
    spread_volumes: Omit[bool] = False
    """Place each volume on the next file system."""
    state: State = State.STARTING
    secondary_addresses: Omit[list[Address]] = []
    """Those of further interfaces."""
    secondary_subnet_ids: Omit[list[str]] = []
    """A further interface for each."""
    subnet_id: Omit[str] = ""
    """Empty: the only one the caller may use."""
    tags: Omit[Tags] = {}
    uncommitted: Omit[bool] = False
    """It came by a migration that is not committed yet."""
    virtual_cpus: Omit[Uint] = 0
    """What the guest sees; 0: as many as `milli_cpus` need."""
    virtualiser_image_name: Omit[str] = ""
    """Of an image that brings the emulator."""
    volumes: Omit[list[Volume]] = []
    """The first is the root. In a request only Format, Interface and Type count."""
    watchdog_action: Omit[WatchdogAction] = WatchdogAction.NONE
    watchdog_model: Omit[WatchdogModel] = WatchdogModel.NONE


class VolumeInitialisationInfo(HypervisorMessage, kw_only=True):
    """How a fresh secondary volume is formatted."""

    bytes_per_inode: Uint64 = 0
    """0: what mkfs does."""
    label: str = ""
    """Of the ext4 file system."""
    reserved_blocks_percentage: Uint16 = 0
    """Room that only root may use."""
    root_group_id: Uint32 = 0
    root_user_id: Uint32 = 0


class Subnet(HypervisorMessage, kw_only=True):
    """A network that VMs can be in; ``ip_mask`` is written as an address."""

    id: str = ""
    """Its name; no two have the same."""
    ip_gateway: IP = ""
    ip_mask: IP = ""
    domain_name: Omit[str] = ""
    domain_name_servers: list[IP] = []
    disable_metadata: Omit[bool] = False
    """VMs in it reach no metadata service."""
    manage: Omit[bool] = False
    """Addresses in it are given out by the Fleet Manager."""
    vlan_id: Omit[Uint] = 0
    """0: without a tag."""
    allowed_groups: Omit[list[str]] = []
    """Whose members may have VMs in it; with no groups and no users, everybody."""
    allowed_users: Omit[list[str]] = []
    """As `allowed_groups`."""
    first_dynamic_ip: Omit[IP] = ""
    """From here on another DHCP server gives addresses out."""
    last_dynamic_ip: Omit[IP] = ""
    """The last of those."""
    tags: Omit[Tags] = {}


class StorageInfo(HypervisorMessage, kw_only=True):
    """Space on one volume directory, in bytes."""

    available_bytes: Uint64 = 0
    """To those who are not root, now."""
    free_bytes: Uint64 = 0
    """To root, now."""
    size_bytes: Uint64 = 0
    usable_bytes: Uint64 = 0
    """For new volumes: less what is allotted already."""


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
