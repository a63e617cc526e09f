"""The Hypervisor itself: its owners, its key, whether it takes VMs."""

import asyncio
from collections.abc import Mapping

from smallstack.hypervisor.errors import NotLocalError
from smallstack.hypervisor.methods.access import hold_seconds
from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.hypervisor.roots import full_disk
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler


class HostMethods(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ChangeOwners": answering(self._owners),
            "GetPublicKey": answering(self._public_key),
            "GetRootCookiePath": answering(self._cookie_path),
            "HoldLock": answering(self._hold),
            "ListVolumeDirectories": answering(self._directories),
            "SetDisabledState": answering(self._disable),
        }

    async def _owners(
        self, _call: Call, request: proto.ChangeOwnersRequest
    ) -> proto.ChangeOwnersResponse:
        await self._agent.parts.owners.change(request.owner_users, request.owner_groups)
        return proto.ChangeOwnersResponse()

    async def _disable(
        self, _call: Call, request: proto.SetDisabledStateRequest
    ) -> proto.SetDisabledStateResponse:
        """A disabled Hypervisor creates and starts no VMs; it remembers that."""
        store = self._agent.parts.store
        with full_disk(store.disabled_file):
            await asyncio.to_thread(store.disable, request.disable)
        self._agent.updates.disabled_changed()
        return proto.SetDisabledStateResponse()

    async def _public_key(
        self, _call: Call, _request: proto.GetPublicKeyRequest
    ) -> proto.GetPublicKeyResponse:
        return proto.GetPublicKeyResponse(key_pem=await self._agent.parts.key.public_pem())

    async def _cookie_path(
        self, _call: Call, _request: proto.GetRootCookiePathRequest
    ) -> proto.GetRootCookiePathResponse:
        """Only root of this machine can read what is there."""
        return proto.GetRootCookiePathResponse(path=str(self._agent.parts.store.root_cookie))

    async def _directories(
        self, call: Call, _request: proto.ListVolumeDirectoriesRequest
    ) -> proto.ListVolumeDirectoriesResponse:
        if not call.peer.is_loopback:
            raise NotLocalError
        directories = map(str, self._agent.parts.ledger.directories)
        return proto.ListVolumeDirectoriesResponse(directories=list(directories))

    async def _hold(self, call: Call, request: proto.HoldLockRequest) -> proto.HoldLockResponse:
        """For seeing what others do meanwhile. Reading waits for nobody here, so that only a
        write lock keeps anybody waiting: creates, and changes of addresses and subnets."""
        seconds = hold_seconds(request.timeout)
        if request.write_lock:
            async with self._agent.parts.book.hold():
                await call.conn.while_connected(asyncio.sleep(seconds))
        else:
            await call.conn.while_connected(asyncio.sleep(seconds))
        return proto.HoldLockResponse()
