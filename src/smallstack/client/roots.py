"""The part of the Hypervisor's client that is about a VM's root and the image it came from."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from smallstack.client.errors import ServiceError
from smallstack.client.following import follow, image_source
from smallstack.client.service import Sent, ServiceClient, receive
from smallstack.proto import hypervisor as proto

if TYPE_CHECKING:
    from smallstack.proto.filesystem import FileSystem
    from smallstack.proto.image import Filter


class Roots(ServiceClient):
    """What streams gives every message as it comes; the last has ``final``."""

    async def debug_vm_image(
        self,
        request: proto.image.DebugVmImageRequest,
        image_data: bytes | Path | None = None,
        sent: Sent | None = None,
    ) -> AsyncGenerator[proto.image.DebugVmImageResponse, None]:
        """Start a VM from another image, to look at its root, which is its second disk then.

        ``image_data`` and ``sent`` as in `create_vm`.
        """
        sources = [] if image_data is None else [image_source(image_data)]
        if sources:
            request.image_data_size = sources[0].size
        method = "Hypervisor.DebugVmImage"
        response = proto.image.DebugVmImageResponse
        replies = follow(self.client, method, request, response, sources, sent)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def replace_vm_image(
        self,
        request: proto.image.ReplaceVmImageRequest,
        image_data: bytes | Path | None = None,
        sent: Sent | None = None,
    ) -> AsyncGenerator[proto.image.ReplaceVmImageResponse, None]:
        """Give a VM another root, from an image; the old one is kept, unless that is skipped.

        ``image_data`` and ``sent`` as in `create_vm`.
        """
        sources = [] if image_data is None else [image_source(image_data)]
        if sources:
            request.image_data_size = sources[0].size
        method = "Hypervisor.ReplaceVmImage"
        response = proto.image.ReplaceVmImageResponse
        replies = follow(self.client, method, request, response, sources, sent)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def restore_vm_image(self, ip_address: str) -> None:
        """Go back to the root of before; the VM has to be stopped."""
        request = proto.image.RestoreVmImageRequest(ip_address=ip_address)
        await self.checked("RestoreVmImage", request, proto.image.RestoreVmImageResponse)

    async def discard_vm_old_image(self, ip_address: str) -> None:
        """Forget the root of before."""
        request = proto.image.DiscardVmOldImageRequest(ip_address=ip_address)
        await self.checked("DiscardVmOldImage", request, proto.image.DiscardVmOldImageResponse)

    async def patch_vm_image(
        self, request: proto.image.PatchVmImageRequest
    ) -> AsyncGenerator[proto.image.PatchVmImageResponse, None]:
        """Change a VM's root to another image by what differs; it is stopped meanwhile."""
        method = "Hypervisor.PatchVmImage"
        replies = follow(self.client, method, request, proto.image.PatchVmImageResponse)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def scan_vm_root(self, ip_address: str, filter_: Filter | None = None) -> FileSystem:
        """The tree of a stopped VM's root, without what the filter matches."""
        request = proto.image.ScanVmRootRequest(ip_address=ip_address, filter=filter_)
        reply = await self.large("ScanVmRoot", request, proto.image.ScanVmRootResponse)
        found = self.check(reply).file_system
        if found is None:
            raise ServiceError(text=f"{self.client.address} sent no tree")
        return found

    async def get_vm_last_patch_log(
        self, ip_address: str
    ) -> tuple[proto.info.GetVmLastPatchLogResponse, bytes]:
        """When `patch_vm_image` has last changed a VM's root, and what it wrote then."""
        async with self.client.raw("Hypervisor.GetVmLastPatchLog") as conn:
            conn.encode(proto.info.GetVmLastPatchLogRequest(ip_address=ip_address))
            await conn.flush()
            reply = await conn.decode(proto.info.GetVmLastPatchLogResponse)
            if not reply.error:
                return reply, b"".join([data async for data in receive(conn, reply.length)])
        raise ServiceError(text=reply.error)
