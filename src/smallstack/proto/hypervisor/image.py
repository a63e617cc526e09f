"""The image under a VM: putting another one there, patching, going back, looking at it."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from smallstack.proto.enums import VolumeFormat
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.image import Filter
from smallstack.proto.kinds import IP, Duration, Omit, Uint64


class DebugVmImageRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DebugVmImage``."""

    dhcp_timeout: Duration = 0
    image_data_size: Uint64 = 0
    image_name: str = ""
    image_timeout: Duration = 0
    image_url: str = ""
    ip_address: IP = ""
    minimum_free_bytes: Uint64 = 0
    overlay_files: dict[str, bytes] = {}
    roundup_power: Uint64 = 0
    """The root has a multiple of 2 to this power bytes."""


class DebugVmImageResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.DebugVmImage``: several, the last one has ``final`` set."""

    dhcp_timed_out: bool = False
    final: bool = False
    progress_message: str = ""
    error: str = ""


class DiscardVmOldImageRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DiscardVmOldImage``."""

    ip_address: IP = ""


class DiscardVmOldImageResponse(Reply):
    """Reply of ``Hypervisor.DiscardVmOldImage``."""


class PatchVmImageRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.PatchVmImage``."""

    image_name: str = ""
    image_timeout: Duration = 0
    ip_address: IP = ""
    overlay_files: dict[str, bytes] = {}
    skip_backup: bool = False
    """Keep no `.old` root."""


class PatchVmImageResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.PatchVmImage``: several, the last one has ``final`` set."""

    final: bool = False
    progress_message: str = ""
    error: str = ""


class ReplaceVmImageRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmImage``."""

    dhcp_timeout: Duration = 0
    image_data_size: Uint64 = 0
    image_name: Omit[str] = ""
    image_timeout: Duration = 0
    image_url: Omit[str] = ""
    ip_address: IP = ""
    minimum_free_bytes: Uint64 = 0
    overlay_files: dict[str, bytes] = {}
    pre_delete: bool = False
    """Remove the old root first, to have its room."""
    roundup_power: Uint64 = 0
    """The root has a multiple of 2 to this power bytes."""
    skip_backup: bool = False
    """Keep no `.old` root."""
    skip_bootloader: bool = False
    volume_format: Omit[VolumeFormat] = VolumeFormat.RAW


class ReplaceVmImageResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.ReplaceVmImage``: several, the last one has ``final`` set."""

    dhcp_timed_out: bool = False
    final: bool = False
    progress_message: str = ""
    error: str = ""


class RestoreVmImageRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.RestoreVmImage``."""

    ip_address: IP = ""


class RestoreVmImageResponse(Reply):
    """Reply of ``Hypervisor.RestoreVmImage``."""


class ScanVmRootRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ScanVmRoot``."""

    ip_address: IP = ""
    filter: Filter | None = None


class ScanVmRootResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ScanVmRoot``."""

    error: str = ""
    file_system: FileSystem | None = None
