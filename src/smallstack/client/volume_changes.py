"""The part of the Hypervisor's client that is about volumes. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence

from smallstack.client.service import ServiceClient
from smallstack.proto import hypervisor as proto


class VolumeChanges(ServiceClient):
    """All of it needs a stopped VM, but for reading."""

    async def add_vm_volumes(self, ip_address: str, sizes: Sequence[int]) -> None:
        """Give a VM further volumes, empty, of these sizes."""
        request = proto.volumes.AddVmVolumesRequest(ip_address=ip_address, volume_sizes=list(sizes))
        await self.checked("AddVmVolumes", request, proto.volumes.AddVmVolumesResponse)

    async def delete_vm_volume(
        self, ip_address: str, index: int, *, access_token: bytes = b""
    ) -> None:
        """Delete a volume and its snapshots; not the first."""
        request = proto.volumes.DeleteVmVolumeRequest(
            ip_address=ip_address, volume_index=index, access_token=access_token
        )
        await self.checked("DeleteVmVolume", request, proto.volumes.DeleteVmVolumeResponse)

    async def reorder_vm_volumes(
        self, ip_address: str, indices: Sequence[int], *, access_token: bytes = b""
    ) -> None:
        """Have the volumes in this order of their present indices; without 0 the first stays."""
        request = proto.volumes.ReorderVmVolumesRequest(
            ip_address=ip_address, volume_indices=list(indices), access_token=access_token
        )
        await self.checked("ReorderVmVolumes", request, proto.volumes.ReorderVmVolumesResponse)

    async def change_vm_volume_size(self, ip_address: str, index: int, size: int) -> None:
        """Give a volume another size, and the ext file system on it."""
        request = proto.volumes.ChangeVmVolumeSizeRequest(
            ip_address=ip_address, volume_index=index, volume_size=size
        )
        await self.checked("ChangeVmVolumeSize", request, proto.volumes.ChangeVmVolumeSizeResponse)

    async def change_vm_volume_storage_index(
        self, ip_address: str, index: int, storage_index: int
    ) -> None:
        """Move a volume to another volume directory."""
        request = proto.volumes.ChangeVmVolumeStorageIndexRequest(
            ip_address=ip_address, volume_index=index, storage_index=storage_index
        )
        await self.checked(
            "ChangeVmVolumeStorageIndex", request, proto.volumes.ChangeVmVolumeStorageIndexResponse
        )
