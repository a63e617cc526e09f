"""The part of the Hypervisor's client that is about volumes. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence

from smallstack.client.errors import ServiceError
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

    # Snapshots.

    async def snapshot_vm(
        self, ip_address: str, name: str = "", *, force: bool = False, root_only: bool = False
    ) -> None:
        """Keep the present state of the volumes under a name."""
        request = proto.volumes.SnapshotVmRequest(
            ip_address=ip_address, name=name, force_if_not_stopped=force, root_only=root_only
        )
        await self.checked("SnapshotVm", request, proto.volumes.SnapshotVmResponse)

    async def restore_vm_from_snapshot(
        self, ip_address: str, name: str = "", *, force: bool = False, retain: bool = False
    ) -> None:
        """Go back to a state that was kept; it is no more kept then, unless it is retained."""
        request = proto.volumes.RestoreVmFromSnapshotRequest(
            ip_address=ip_address, name=name, force_if_not_stopped=force, retain=retain
        )
        await self.checked(
            "RestoreVmFromSnapshot", request, proto.volumes.RestoreVmFromSnapshotResponse
        )

    async def discard_vm_snapshot(self, ip_address: str, name: str = "") -> None:
        """Forget a state that was kept."""
        request = proto.volumes.DiscardVmSnapshotRequest(ip_address=ip_address, name=name)
        await self.checked("DiscardVmSnapshot", request, proto.volumes.DiscardVmSnapshotResponse)

    # Reading.

    async def get_vm_volume(
        self, ip_address: str, index: int, fd: int, size: int, *, access_token: bytes = b""
    ) -> int:
        """Make an open file what a volume of ``size`` bytes is; how many bytes came.

        What the file has already of it is not sent again. At any time, but of a running VM it is
        the state of no single moment. The kernel beside a root does not come along.
        """
        from smallstack.client.blocks import receive_blocks  # few tools need it

        async with self.client.raw("Hypervisor.GetVmVolume") as conn:
            conn.encode(
                proto.volumes.GetVmVolumeRequest(
                    ip_address=ip_address,
                    volume_index=index,
                    ignore_extra_files=True,
                    access_token=access_token,
                )
            )
            await conn.flush()
            reply = await conn.decode(proto.volumes.GetVmVolumeResponse)
            if not reply.error:
                return await receive_blocks(conn, fd, size)
        raise ServiceError(text=reply.error)
