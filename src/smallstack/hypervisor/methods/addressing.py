"""Addresses and subnets of this Hypervisor."""

import asyncio
from collections.abc import Mapping
from typing import Self

from smallstack.hypervisor.errors import RequestError, SubnetInUseError
from smallstack.hypervisor.methods.base import Methods, Stream, answering, opening
from smallstack.network.dhcp.server import DhcpServer
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.server import Call, Handler

MAX_PACKETS = 1000
"""DHCP messages that wait for a client that watches."""


class Addressing(Methods):
    """The methods."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {
            "ChangeAddressPool": answering(self._change_pool),
            "ListSubnets": answering(self._subnets),
            "RegisterExternalLeases": answering(self._external),
            "UpdateSubnets": answering(self._update_subnets),
            "WatchDhcp": opening(self._watch_dhcp),
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

    # DHCP.

    async def _external(
        self, _call: Call, request: proto.RegisterExternalLeasesRequest
    ) -> proto.RegisterExternalLeasesResponse:
        await self._agent.external_leases.replace(request.addresses, request.hostnames)
        return proto.RegisterExternalLeasesResponse()

    async def _watch_dhcp(self, call: Call, request: proto.WatchDhcpRequest) -> Stream:
        """Requests as they come in, on one bridge or all; ``max_packets`` of them, 0: no end."""
        conn, wiring = call.conn, self._agent.parts.wiring
        if request.interface and request.interface not in wiring.bridges:
            known = ", ".join(wiring.bridges)
            raise RequestError(
                detail=f"there is no DHCP on interface {request.interface!r}: it is on {known}"
            )

        async def stream() -> None:
            told = 0
            with PacketWatch(wiring.dhcp, request.interface) as packets:

                async def tell() -> None:
                    nonlocal told
                    async for interface, packet in packets:
                        conn.encode(proto.WatchDhcpResponse(interface=interface, packet=packet))
                        await conn.flush()
                        told += 1
                        if told == request.max_packets:
                            return

                await conn.while_connected(tell())

        return stream


class PacketWatch:
    """DHCP messages as they come in; who is slow misses some."""

    def __init__(self, dhcp: DhcpServer, interface: str) -> None:
        self._dhcp = dhcp
        self._interface = interface
        self._packets: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(MAX_PACKETS)

    def __enter__(self) -> Self:
        self._dhcp.watchers.append(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._dhcp.watchers.remove(self._hear)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        return await self._packets.get()

    def _hear(self, interface: str, packet: bytes) -> None:
        if self._interface in {"", interface} and not self._packets.full():
            self._packets.put_nowait((interface, packet))
