"""The volumes of a VM."""

from collections.abc import Mapping

from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.hypervisor.volume_changes import VolumeChanges
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler


class Volumes(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "AddVmVolumes": answering(self._add),
            "ChangeVmVolumeSize": answering(self._resize),
            "ChangeVmVolumeStorageIndex": answering(self._move),
            "DeleteVmVolume": answering(self._delete),
            "ReorderVmVolumes": answering(self._reorder),
        }

    def _changes(self, call: Call, ip: str, token: bytes = b"") -> VolumeChanges:
        return VolumeChanges(self._agent, self._mine(call, ip, token))

    async def _add(
        self, call: Call, request: proto.AddVmVolumesRequest
    ) -> proto.AddVmVolumesResponse:
        await self._changes(call, request.ip_address).add(request.volume_sizes)
        return proto.AddVmVolumesResponse()

    async def _delete(
        self, call: Call, request: proto.DeleteVmVolumeRequest
    ) -> proto.DeleteVmVolumeResponse:
        changes = self._changes(call, request.ip_address, request.access_token)
        await changes.delete(request.volume_index)
        return proto.DeleteVmVolumeResponse()

    async def _reorder(
        self, call: Call, request: proto.ReorderVmVolumesRequest
    ) -> proto.ReorderVmVolumesResponse:
        changes = self._changes(call, request.ip_address, request.access_token)
        await changes.reorder(request.volume_indices)
        return proto.ReorderVmVolumesResponse()

    async def _resize(
        self, call: Call, request: proto.ChangeVmVolumeSizeRequest
    ) -> proto.ChangeVmVolumeSizeResponse:
        changes = self._changes(call, request.ip_address)
        await changes.resize(request.volume_index, request.volume_size)
        return proto.ChangeVmVolumeSizeResponse()

    async def _move(
        self, call: Call, request: proto.ChangeVmVolumeStorageIndexRequest
    ) -> proto.ChangeVmVolumeStorageIndexResponse:
        changes = self._changes(call, request.ip_address)
        await changes.move(request.volume_index, request.storage_index)
        return proto.ChangeVmVolumeStorageIndexResponse()
