"""The life of a VM: start, stop, reboot, destroy."""

from collections.abc import Awaitable, Callable, Mapping

from smallstack.hypervisor.dhcp_wait import DhcpWait
from smallstack.hypervisor.errors import DisabledError
from smallstack.hypervisor.methods import base
from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.hypervisor.vm import Vm
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler


class Power(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "DestroyVm": answering(self._destroy),
            "RebootVm": answering(self._reboot),
            "StartVm": answering(self._start),
            "StopVm": answering(self._stop),
        }

    async def _start(self, call: Call, request: proto.StartVmRequest) -> proto.StartVmResponse:
        if self._agent.parts.store.disabled:
            raise DisabledError
        vm = self._mine(call, request.ip_address, request.access_token)
        timed_out = await self._with_dhcp(call, vm, vm.start, request.dhcp_timeout)
        return proto.StartVmResponse(dhcp_timed_out=timed_out)

    async def _stop(self, call: Call, request: proto.StopVmRequest) -> proto.StopVmResponse:
        await self._mine(call, request.ip_address, request.access_token).stop()
        return proto.StopVmResponse()

    async def _reboot(self, call: Call, request: proto.RebootVmRequest) -> proto.RebootVmResponse:
        vm = self._mine(call, request.ip_address)
        timed_out = await self._with_dhcp(call, vm, vm.reboot, request.dhcp_timeout)
        return proto.RebootVmResponse(dhcp_timed_out=timed_out)

    async def _destroy(
        self, call: Call, request: proto.DestroyVmRequest
    ) -> proto.DestroyVmResponse:
        await self._mine(call, request.ip_address, request.access_token).destroy()
        return proto.DestroyVmResponse()

    async def _with_dhcp(
        self, call: Call, vm: Vm, work: Callable[[], Awaitable[None]], timeout_ns: int
    ) -> bool:
        """Do something that boots the guest, then wait for its DHCP; whether time ran out.

        The wait ends with the caller; what boots the guest does not.
        """
        if timeout_ns <= 0:
            await work()
            return False
        wait = DhcpWait(self._agent.parts.wiring.dhcp, vm)
        try:
            await work()
            return await call.conn.while_connected(wait.wait(min(timeout_ns, base.MAX_WAIT)))
        finally:
            wait.close()
