"""Creating a VM: what is asked for, what is told meanwhile, and the word that it may stay."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import Final

from msgspec import field

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Duration, Embedded, Int64, Omit, Uint, Uint64
from smallstack.proto.vm import VmInfo, Volume, VolumeInitialisationInfo

MAX_USER_DATA: Final = 256 << 20
"""Bytes of user data that a VM can have."""

IMAGE_FORMATS: Final = ("", "auto", "raw", "qcow2", "vmdk", "vdi")
"""What can be said of an image that is sent or named by its URL. ``auto``: told from the content,
compressed or not; ``raw``: every byte is the disk's; nothing: as upstream has it, qcow2 if the root
volume's Format says so, else raw."""


class AcknowledgeVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.AcknowledgeVm``."""

    ip_address: IP = ""


class AcknowledgeVmResponse(Reply):
    """Reply of ``Hypervisor.AcknowledgeVm``."""


class CreateVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.CreateVm``.

    Behind it come, in this order: the raw image (``image_data_size`` bytes), the user data
    (``user_data_size`` bytes), and the secondary volumes when ``secondary_volumes_data`` is set.
    ``dhcp_timeout`` in ns: below 0 no DHCP, 0 no wait, above 0 the time to wait for the lease.
    """

    dhcp_timeout: Omit[Duration] = 0
    """Below 0: no DHCP; 0: no wait; above: how long to wait for the lease."""
    do_not_start: Omit[bool] = False
    """The VM is made and stays stopped."""
    enable_netboot: Omit[bool] = False
    """Boot from the network first."""
    identity_certificate: Omit[bytes] = b""
    """PEM; a certificate that asks for a role, see `Hypervisor.ReplaceVmIdentity`."""
    identity_key: Omit[bytes] = b""
    """PEM; empty: the certificate is for the key of the Hypervisor."""
    image_data_size: Omit[Uint64] = 0
    """Of the disk image that follows the request."""
    image_timeout: Omit[Duration] = 0
    """How long to wait for an image that is not there yet."""
    minimum_free_bytes: Omit[Uint64] = 0
    """Room in the root above what the image takes; without an image, its size."""
    overlay_directories: Omit[list[str]] = []
    """Made in the root: paths."""
    overlay_files: Omit[dict[str, bytes]] = {}
    """Path to content; they replace those of the image."""
    roundup_power: Omit[Uint64] = 0
    """The root has a multiple of 2 to this power bytes, and of 2 to the 24th at least."""
    secondary_volumes: Omit[list[Volume]] = []
    """Further volumes; of each Size counts, and Format, Interface, Type."""
    secondary_volumes_data: Omit[bool] = False
    """Their content follows the user data, in their order."""
    secondary_volumes_init: Omit[list[VolumeInitialisationInfo]] = []
    """A file system for each that is empty."""
    skip_bootloader: Omit[bool] = False
    """Start the kernel of the image directly."""
    skip_memory_check: Omit[bool] = False
    """Do not ask whether the machine has the memory, only the agent's books."""
    storage_indices: Omit[list[Uint]] = []
    """On which volume directory each volume goes, the root first."""
    user_data_size: Omit[Uint64] = 0
    """Of the user data that follow the image; at most 256 MiB."""
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)


class OwnCreateVmRequest(CreateVmRequest, kw_only=True):
    """The same with what upstream's has not; it is sent when something of that is asked for.

    Decoders go by the names of fields, not of messages. ``image_format`` is one of IMAGE_FORMATS.
    """

    image_format: Omit[str] = ""
    """One of auto, raw, qcow2, vmdk, vdi."""


class TimelinePhase(HypervisorMessage, kw_only=True):
    """A stretch of time in a create, by the agent's monotonic clock; ours alone."""

    name: str = ""
    """Such as `unpack`."""
    start_nanoseconds: Int64 = 0
    """By the agent's monotonic clock."""
    duration_nanoseconds: Int64 = 0


class CreateVmResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.CreateVm``: several, the last one has ``final`` set.

    ``timeline`` comes with the last one; it is ours, other implementations skip it.
    """

    dhcp_timed_out: bool = False
    """The guest did not ask for its address in time; the VM is there all the same."""
    final: bool = False
    """The last reply. The VM is destroyed unless it is acknowledged within 15 s."""
    ip_address: IP = ""
    progress_message: str = ""
    """One line, such as `getting image`."""
    error: str = ""
    timeline: Omit[list[TimelinePhase]] = []
    """With the last reply."""
