"""The user data of a VM."""

import asyncio
from collections.abc import Mapping

from smallstack.hypervisor.errors import RequestError
from smallstack.hypervisor.methods.base import (
    Methods,
    Stream,
    answering,
    open_file,
    opening,
    send_file,
)
from smallstack.hypervisor.roots import full_disk
from smallstack.hypervisor.upload import Upload
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.hypervisor.create import MAX_USER_DATA
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError


class UserData(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "DiscardVmOldUserData": answering(self._discard),
            "GetVmUserData": opening(self._get),
            "ReplaceVmUserData": answering(self._replace),
            "RestoreVmUserData": answering(self._restore),
        }

    async def _get(self, call: Call, request: proto.GetVmUserDataRequest) -> Stream:
        conn = call.conn
        vm = self._mine(call, request.ip_address, request.access_token, write=False)
        try:
            file, length = await open_file(vm.user_data)
        except FileNotFoundError:

            async def nothing() -> None:
                conn.encode(proto.GetVmUserDataResponse())
                await conn.flush()

            return nothing

        async def stream() -> None:
            conn.encode(proto.GetVmUserDataResponse(length=length))
            await send_file(conn, file, length)

        return stream

    async def _replace(
        self, call: Call, request: proto.ReplaceVmUserDataRequest
    ) -> proto.ReplaceVmUserDataResponse:
        upload = Upload(call.conn, request.size)
        try:
            vm = self._mine(call, request.ip_address)
            if request.size > MAX_USER_DATA:
                raise RequestError(
                    detail=f"{request.size} bytes of user data: at most {MAX_USER_DATA}"
                )
            with full_disk(vm.user_data):
                async with vm.hold():
                    await vm.replace_user_data(lambda path: upload.store(request.size, path))
        except (ConnectionClosedError, PeerStalledError):
            raise
        except SmallStackError:
            await upload.drain()
            raise
        return proto.ReplaceVmUserDataResponse()

    async def _restore(
        self, call: Call, request: proto.RestoreVmUserDataRequest
    ) -> proto.RestoreVmUserDataResponse:
        vm = self._mine(call, request.ip_address)
        try:
            await vm.apply(lambda: asyncio.to_thread(vm.directory.restore_user_data))
        except FileNotFoundError:
            raise RequestError(detail="there are no old user data to restore") from None
        return proto.RestoreVmUserDataResponse()

    async def _discard(
        self, call: Call, request: proto.DiscardVmOldUserDataRequest
    ) -> proto.DiscardVmOldUserDataResponse:
        vm = self._mine(call, request.ip_address)
        await vm.apply(lambda: asyncio.to_thread(vm.directory.discard_old_user_data))
        return proto.DiscardVmOldUserDataResponse()
