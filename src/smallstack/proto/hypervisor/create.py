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


class OwnCreateVmRequest(CreateVmRequest, kw_only=True):
    """The same with what upstream's has not; it is sent when something of that is asked for.

    Decoders go by the names of fields, not of messages. ``image_format`` is one of IMAGE_FORMATS.
    """

    image_format: Omit[str] = ""


class TimelinePhase(HypervisorMessage, kw_only=True):
    """A stretch of time in a create, by the agent's monotonic clock; ours alone."""

    name: str = ""
    start_nanoseconds: Int64 = 0
    duration_nanoseconds: Int64 = 0


class CreateVmResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.CreateVm``: several, the last one has ``final`` set.

    ``timeline`` comes with the last one; it is ours, other implementations skip it.
    """

    dhcp_timed_out: bool = False
    final: bool = False
    ip_address: IP = ""
    progress_message: str = ""
    error: str = ""
    timeline: Omit[list[TimelinePhase]] = []
