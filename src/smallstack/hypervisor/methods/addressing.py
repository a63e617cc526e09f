"""Addresses and subnets of this Hypervisor."""

from collections.abc import Mapping

from smallstack.hypervisor.errors import SubnetInUseError
from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler


class Addressing(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ChangeAddressPool": answering(self._change_pool),
            "ListSubnets": answering(self._subnets),
            "UpdateSubnets": answering(self._update_subnets),
        }

    async def _change_pool(
        self, _call: Call, request: proto.ChangeAddressPoolRequest
    ) -> proto.ChangeAddressPoolResponse:
        await self._agent.parts.book.change_pool(
            request.addresses_to_add,
            request.addresses_to_remove,
            request.maximum_free_addresses,
            self._agent.macs_in_use(),
        )
        return proto.ChangeAddressPoolResponse()

    async def _update_subnets(
        self, _call: Call, request: proto.UpdateSubnetsRequest
    ) -> proto.UpdateSubnetsResponse:
        parts = self._agent.parts
        for ip, holding in parts.ledger.holdings.items():
            for subnet in set(request.delete).intersection(holding.subnet_ids):
                raise SubnetInUseError(subnet=subnet, ip=ip)
        await parts.book.update_subnets(request.add, request.change, request.delete)
        return proto.UpdateSubnetsResponse()

    async def _subnets(
        self, _call: Call, _request: proto.ListSubnetsRequest
    ) -> proto.ListSubnetsResponse:
        return proto.ListSubnetsResponse(subnets=self._agent.parts.book.list_subnets())
