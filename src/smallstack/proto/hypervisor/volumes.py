"""A VM's disks: adding, changing, reading them, and their snapshots."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from smallstack.proto.enums import VolumeInterface
from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Omit, Uint, Uint64
from smallstack.proto.vm import StorageInfo


class AddVmVolumesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.AddVmVolumes``."""

    ip_address: IP = ""
    volume_sizes: list[Uint64] = []


class AddVmVolumesResponse(Reply):
    """Reply of ``Hypervisor.AddVmVolumes``."""


class ChangeVmVolumeInterfacesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeInterfaces``."""

    interfaces: list[VolumeInterface] = []
    ip_address: IP = ""


class ChangeVmVolumeInterfacesResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmVolumeInterfaces``."""


class ChangeVmVolumeSizeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeSize``."""

    ip_address: IP = ""
    volume_index: Uint = 0
    volume_size: Uint64 = 0


class ChangeVmVolumeSizeResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmVolumeSize``."""


class ChangeVmVolumeStorageIndexRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmVolumeStorageIndex``."""

    ip_address: IP = ""
    storage_index: Uint = 0
    volume_index: Uint = 0


class ChangeVmVolumeStorageIndexResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmVolumeStorageIndex``."""


class DeleteVmVolumeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DeleteVmVolume``."""

    access_token: bytes = b""
    ip_address: IP = ""
    volume_index: Uint = 0


class DeleteVmVolumeResponse(Reply):
    """Reply of ``Hypervisor.DeleteVmVolume``."""


class DiscardVmSnapshotRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DiscardVmSnapshot``."""

    ip_address: IP = ""
    name: str = ""


class DiscardVmSnapshotResponse(Reply):
    """Reply of ``Hypervisor.DiscardVmSnapshot``."""


class GetVmVolumeRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmVolume``."""

    access_token: bytes = b""
    get_extra_files: bool = False
    ignore_extra_files: bool = False
    ip_address: IP = ""
    volume_index: Uint = 0


class GetVmVolumeResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmVolume``."""

    error: str = ""
    extra_files: dict[str, bytes] = {}


class GetVmVolumeStorageConfigurationRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmVolumeStorageConfiguration``."""

    ip_address: IP = ""


class GetVmVolumeStorageConfigurationResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmVolumeStorageConfiguration``."""

    error: Omit[str] = ""
    storage_infos: Omit[list[StorageInfo]] = []
    volume_storage_indices: Omit[list[Uint]] = []


class ListVolumeDirectoriesRequest(HypervisorMessage):
    """Request of ``Hypervisor.ListVolumeDirectories``."""


class ListVolumeDirectoriesResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ListVolumeDirectories``."""

    directories: list[str] = []
    error: str = ""


class RestoreVmFromSnapshotRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.RestoreVmFromSnapshot``."""

    ip_address: IP = ""
    force_if_not_stopped: bool = False
    name: str = ""
    retain: bool = False


class RestoreVmFromSnapshotResponse(Reply):
    """Reply of ``Hypervisor.RestoreVmFromSnapshot``."""


class ReorderVmVolumesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ReorderVmVolumes``."""

    access_token: bytes = b""
    ip_address: IP = ""
    volume_indices: list[Uint] = []


class ReorderVmVolumesResponse(Reply):
    """Reply of ``Hypervisor.ReorderVmVolumes``."""


class SnapshotVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.SnapshotVm``."""

    ip_address: IP = ""
    force_if_not_stopped: bool = False
    name: str = ""
    root_only: bool = False


class SnapshotVmResponse(Reply):
    """Reply of ``Hypervisor.SnapshotVm``."""
