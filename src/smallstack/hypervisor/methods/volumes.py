"""The volumes of a VM."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from smallstack.hypervisor.block_sender import BlockSender
from smallstack.hypervisor.errors import RequestError
from smallstack.hypervisor.methods.base import Methods, Stream, answering, opening
from smallstack.hypervisor.roots import INITRD, KERNEL
from smallstack.hypervisor.snapshots import Snapshots
from smallstack.hypervisor.store import ROOT
from smallstack.hypervisor.vm import Vm
from smallstack.hypervisor.volume_changes import VolumeChanges
from smallstack.outlast import outlast
from smallstack.proto.enums import VolumeFormat
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler
from smallstack.volumes.qcow2.chain import Files

MAX_EXTRA = 256 << 20
"""Bytes of a kernel and an initrd that are sent with a root."""


class Volumes(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "AddVmVolumes": answering(self._add),
            "ChangeVmVolumeSize": answering(self._resize),
            "ChangeVmVolumeStorageIndex": answering(self._move),
            "DeleteVmVolume": answering(self._delete),
            "DiscardVmSnapshot": answering(self._discard_snapshot),
            "GetVmVolume": opening(self._get),
            "ReorderVmVolumes": answering(self._reorder),
            "RestoreVmFromSnapshot": answering(self._restore_snapshot),
            "SnapshotVm": answering(self._snapshot),
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

    # Snapshots.

    async def _snapshot(
        self, call: Call, request: proto.SnapshotVmRequest
    ) -> proto.SnapshotVmResponse:
        snapshots = Snapshots(self._agent, self._mine(call, request.ip_address))
        await snapshots.take(
            request.name, force=request.force_if_not_stopped, root_only=request.root_only
        )
        return proto.SnapshotVmResponse()

    async def _restore_snapshot(
        self, call: Call, request: proto.RestoreVmFromSnapshotRequest
    ) -> proto.RestoreVmFromSnapshotResponse:
        snapshots = Snapshots(self._agent, self._mine(call, request.ip_address))
        await snapshots.restore(
            request.name, force=request.force_if_not_stopped, retain=request.retain
        )
        return proto.RestoreVmFromSnapshotResponse()

    async def _discard_snapshot(
        self, call: Call, request: proto.DiscardVmSnapshotRequest
    ) -> proto.DiscardVmSnapshotResponse:
        snapshots = Snapshots(self._agent, self._mine(call, request.ip_address))
        await snapshots.discard(request.name)
        return proto.DiscardVmSnapshotResponse()

    # Reading.

    async def _get(self, call: Call, request: proto.GetVmVolumeRequest) -> Stream:
        """What the guest sees of a volume, whatever the file is like. Others cannot change the VM
        meanwhile; a guest that runs can, and what is sent is then of no single moment."""
        conn = call.conn
        vm = self._mine(call, request.ip_address, request.access_token)
        if request.volume_index >= len(vm.record.volume_locations):
            raise RequestError(detail=f"there is no volume {request.volume_index}")
        path = Path(vm.record.volume_locations[request.volume_index].filename)
        extra: dict[str, bytes] = {}
        if request.volume_index == 0 and not request.ignore_extra_files:
            extra = await asyncio.to_thread(_extra_files, path)
            if extra and not request.get_extra_files:
                raise RequestError(
                    detail="the VM boots a kernel beside its root: ask for the extra files, or "
                    "ignore them"
                )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(vm.hold())
            files = stack.enter_context(Files())
            kind = vm.layer.format if path.name == ROOT else _format(vm, request.volume_index)
            disk = await outlast(asyncio.to_thread(files.open, path, disk_format=kind))
            held = stack.pop_all()

        async def stream() -> None:
            async with held:
                await conn.encode_in_thread(proto.GetVmVolumeResponse(extra_files=extra))
                await conn.flush()
                await BlockSender(conn, disk).run()

        return stream


def _format(vm: Vm, index: int) -> str:
    return "qcow2" if vm.info.volumes[index].format is VolumeFormat.QCOW2 else "raw"


def _extra_files(root: Path) -> dict[str, bytes]:
    """Kernel and initrd beside a root. Blocks. Raises RequestError, OSError."""
    found = [path for path in (root.with_name(KERNEL), root.with_name(INITRD)) if path.exists()]
    if sum(path.stat().st_size for path in found) > MAX_EXTRA:
        raise RequestError(
            detail=f"kernel and initrd have more than {MAX_EXTRA} bytes: ignore them"
        )
    return {path.name: path.read_bytes() for path in found}
