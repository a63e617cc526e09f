"""Who may have a VM: its owners, its access token, and who holds it for a while."""

import asyncio
import secrets
from collections.abc import Mapping

from smallstack.hypervisor.errors import NotAuthenticatedError, RequestError
from smallstack.hypervisor.methods.base import NANOSECONDS, Methods, answering
from smallstack.hypervisor.vm import TOKEN_BYTES
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.vm import LocalVmInfo
from smallstack.srpc.server import Call, Handler

MIN_LIFETIME, MAX_LIFETIME = 60 * NANOSECONDS, 24 * 3600 * NANOSECONDS
"""Of an access token."""
MAX_HOLD = 60 * NANOSECONDS


class Access(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "BecomePrimaryVmOwner": answering(self._become_primary),
            "ChangeVmOwnerGroups": answering(self._groups),
            "ChangeVmOwnerUsers": answering(self._users),
            "DiscardVmAccessToken": answering(self._discard_token),
            "GetVmAccessToken": answering(self._token),
            "HoldVmLock": answering(self._hold),
        }

    async def _become_primary(
        self, call: Call, request: proto.BecomePrimaryVmOwnerRequest
    ) -> proto.BecomePrimaryVmOwnerResponse:
        vm = self._mine(call, request.ip_address)
        name = call.peer.username
        if not name:
            raise NotAuthenticatedError

        def edit(record: LocalVmInfo) -> None:
            owners = record.vm_info.owner_users
            if owners[:1] == [name]:
                raise RequestError(detail="you already are the primary owner")
            record.vm_info.owner_users = _distinct([name, *owners])

        await vm.change(edit)
        return proto.BecomePrimaryVmOwnerResponse()

    async def _users(
        self, call: Call, request: proto.ChangeVmOwnerUsersRequest
    ) -> proto.ChangeVmOwnerUsersResponse:
        """The primary owner stays."""

        def edit(record: LocalVmInfo) -> None:
            primary = record.vm_info.owner_users[:1]
            record.vm_info.owner_users = _distinct([*primary, *request.owner_users])

        await self._mine(call, request.ip_address).change(edit)
        return proto.ChangeVmOwnerUsersResponse()

    async def _groups(
        self, call: Call, request: proto.ChangeVmOwnerGroupsRequest
    ) -> proto.ChangeVmOwnerGroupsResponse:
        def edit(record: LocalVmInfo) -> None:
            record.vm_info.owner_groups = _distinct(request.owner_groups)

        await self._mine(call, request.ip_address).change(edit)
        return proto.ChangeVmOwnerGroupsResponse()

    async def _token(
        self, call: Call, request: proto.GetVmAccessTokenRequest
    ) -> proto.GetVmAccessTokenResponse:
        vm = self._mine(call, request.ip_address)
        if not MIN_LIFETIME <= request.lifetime <= MAX_LIFETIME:
            raise RequestError(detail="the lifetime of a token is 1 minute at least, 24 hours most")
        token = secrets.token_bytes(TOKEN_BYTES)
        vm.grant_token(token, request.lifetime / NANOSECONDS)
        return proto.GetVmAccessTokenResponse(token=token)

    async def _discard_token(
        self, call: Call, request: proto.DiscardVmAccessTokenRequest
    ) -> proto.DiscardVmAccessTokenResponse:
        vm = self._mine(call, request.ip_address, request.access_token, write=False)
        vm.discard_token()
        return proto.DiscardVmAccessTokenResponse()

    async def _hold(self, call: Call, request: proto.HoldVmLockRequest) -> proto.HoldVmLockResponse:
        """For seeing what others do meanwhile. Reading waits for nobody here, so that only a
        write lock keeps anybody out: from changing the VM."""
        vm = self._mine(call, request.ip_address, write=request.write_lock)
        seconds = hold_seconds(request.timeout)
        if request.write_lock:
            async with vm.hold():
                await call.conn.while_connected(asyncio.sleep(seconds))
        else:
            await call.conn.while_connected(asyncio.sleep(seconds))
        return proto.HoldVmLockResponse()


def hold_seconds(timeout: int) -> float:
    """Of a lock held for its own sake. Raises RequestError."""
    if not 0 <= timeout <= MAX_HOLD:
        raise RequestError(detail="a lock is held for one minute at most")
    return timeout / NANOSECONDS


def _distinct(names: list[str]) -> list[str]:
    """Without repetitions, in the order of their first places."""
    return [name for name in dict.fromkeys(names) if name]
