"""The network of all VMs: bridges with their DHCP and metadata services, and each VM's way in.

::

    connect ──► tap on its bridge ─► guard lets tap + MAC + IP through ─► lease ─► Nic
    resume  ──► the same without the tap: a QEMU that outlived the agent has it
    disconnect ─ guard and lease forgotten; the tap goes with its last descriptor
"""

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from smallstack.hypervisor.errors import NotSupportedError
from smallstack.network.book import AddressBook
from smallstack.network.bridge import Bridge, choose_bridge, ensure_bridge, list_bridges
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.errors import NetworkError, NoUsableBridgeError, SubnetMissingError
from smallstack.network.guard import Guard, Guest
from smallstack.network.metadata.server import Lookup, MetadataServer
from smallstack.network.metadata.tracers import Tracers
from smallstack.network.names import service_name
from smallstack.network.netlink import Netlink, Sockets
from smallstack.network.tap import Tap, delete_tap, list_taps, open_tap, tap_name
from smallstack.proto.vm import Address, Subnet, VmInfo
from smallstack.srpc import json_coder

_log = logging.getLogger("smallstack.hypervisor")


@dataclass
class Nic:
    """One interface of a VM that is connected: whoever has it closes the tap."""

    address: Address
    subnet: Subnet
    tap: Tap


def addresses_of(info: VmInfo) -> list[tuple[Address, str]]:
    """Every address of a VM with the id of its subnet, the primary one first."""
    ids = [info.subnet_id, *info.secondary_subnet_ids]
    return list(zip([info.address, *info.secondary_addresses], ids, strict=False))


class Wiring:
    """Everything between the guests and this machine."""

    def __init__(
        self, netlink: Netlink, guard: Guard, dhcp: DhcpServer, tracers: Tracers, book: AddressBook
    ) -> None:
        """Use `open`."""
        self.netlink = netlink
        self.dhcp = dhcp
        self.tracers = tracers
        self.book = book
        self.bridges: dict[str, Bridge] = {}
        self.metadata: dict[str, MetadataServer] = {}
        self._guard = guard

    @classmethod
    async def open(
        cls,
        book: AddressBook,
        names: Sequence[str],
        address: str | None,
        lookup: Lookup,
        control_port: int,
    ) -> "Wiring":
        """Serve the named bridges, or all there are. With an ``address`` the first one is made
        if it is missing, and gets it. Raises a NetworkError."""
        netlink = await Netlink.open()
        wiring = cls(netlink, Guard(netlink), DhcpServer(), Tracers(), book)
        try:
            await wiring._find_bridges(names, address)
            for bridge in wiring.bridges.values():
                await wiring._serve(bridge, lookup, control_port)
        except BaseException:
            await wiring.close()
            raise
        return wiring

    @property
    def control_sockets(self) -> list[socket.socket]:
        """Listening sockets on 169.254.169.254 and the control port; the caller's to close."""
        return [server.control_socket.dup() for server in self.metadata.values()]

    async def install(self, vms: Iterable[VmInfo]) -> None:
        """Guard the bridges, letting exactly these VMs through; once, at start."""
        guests = []
        for info in vms:
            for address, subnet_id in addresses_of(info):
                try:
                    subnet, bridge = self._place(subnet_id)
                except NetworkError as error:
                    _log.warning("%s: %s", info.address.ip_address, error)
                    continue
                guests.append(self._guest(address, subnet, bridge))
        await self._guard.install(
            guests=guests,
            uplinks=[name for bridge in self.bridges.values() for name in bridge.uplinks],
            services=[service_name(name) for name in self.metadata],
        )
        await self.subnets_changed()

    async def subnets_changed(self) -> None:
        """Route to the subnets as they are now."""
        subnets = list(self.book.subnets)
        for server in self.metadata.values():
            await server.set_subnets(subnets)

    async def connect(self, info: VmInfo, *, lease: bool) -> list[Nic]:
        """Taps, guard and leases of a VM; when it raises, nothing is left of them."""
        nics: list[Nic] = []
        try:
            for address, subnet_id in addresses_of(info):
                subnet, bridge = self._place(subnet_id)
                tap = await self.netlink.run(
                    partial(self._open, address, subnet, bridge), _close_tap
                )
                nics.append(Nic(address, subnet, tap))
                await self._enter(address, subnet, bridge, info.hostname if lease else None)
        except BaseException:
            await self.disconnect(info)
            await self.close_taps(nics)
            raise
        return nics

    async def resume(self, info: VmInfo, *, lease: bool) -> None:
        """Leases and metadata of a VM whose machine was found; the guard knows it already."""
        for address, subnet_id in addresses_of(info):
            subnet, bridge = self._place(subnet_id)
            await self._enter(address, subnet, bridge, info.hostname if lease else None)

    async def disconnect(self, info: VmInfo, *, keep_lease: bool = False) -> None:
        """Shut a VM out. What was never connected is fine."""
        for address, _ in addresses_of(info):
            if not keep_lease:
                self.dhcp.remove_lease(address.ip_address)
            await self._guard.revoke(tap_name(address.ip_address, address.mac_address))
            for server in self.metadata.values():
                await server.remove_guest(address.ip_address)

    async def close_taps(self, nics: Iterable[Nic]) -> None:
        """Close our descriptors; in a thread, for the last one takes the kernel 16 ms."""
        for nic in nics:
            await asyncio.to_thread(nic.tap.close)

    async def remove_leftovers(self, keep: Iterable[str]) -> None:
        """Remove taps of ours that belong to none of these addresses."""
        wanted = {tap_name(ip) for ip in keep}
        for name in await list_taps(self.netlink):
            if name not in wanted and await delete_tap(self.netlink, name):
                _log.warning("removed the tap %s, which no VM has", name)

    async def close(self) -> None:
        """Stop serving. The guard stays: running VMs are guarded while the agent is away."""
        await self.dhcp.close()
        for server in self.metadata.values():
            await server.close()
        self.metadata.clear()
        await self.netlink.close()

    async def _find_bridges(self, names: Sequence[str], address: str | None) -> None:
        found = []
        for index, name in enumerate(names):
            own = address if index == 0 else None
            found.append(await ensure_bridge(self.netlink, name, own, create=own is not None))
        if not names:
            found = await list_bridges(self.netlink)
        if not found:
            raise NoUsableBridgeError(subnet="any", vlan_id=0, known="none")
        self.bridges = {bridge.name: bridge for bridge in found}

    async def _serve(self, bridge: Bridge, lookup: Lookup, control_port: int) -> None:
        others = [
            interface.ip
            for other in self.bridges.values()
            for interface in other.addresses
            if other is not bridge
        ]
        self.dhcp.listen(bridge.name, bridge.addresses, others)
        server = MetadataServer(bridge, lookup, self.tracers, identity_document)
        self.metadata[bridge.name] = server
        await server.start(self.netlink, control_port)

    def _place(self, subnet_id: str) -> tuple[Subnet, Bridge]:
        """The subnet and its bridge. Raises SubnetMissingError, NoUsableBridgeError and
        NotSupportedError for a VLAN that no bridge carries."""
        subnet = self.book.subnets.get(subnet_id)
        if subnet is None:
            raise SubnetMissingError(subnet=subnet_id)
        bridge, tag = choose_bridge(subnet.id, subnet.vlan_id, list(self.bridges.values()))
        if tag is not None:
            raise NotSupportedError(
                asked=f"VLAN {tag} of subnet {subnet.id} on the untagged bridge {bridge.name}",
                instead=f"make a bridge br@{subnet.id}, or one with an uplink in that VLAN",
            )
        return subnet, bridge

    def _guest(self, address: Address, subnet: Subnet, bridge: Bridge) -> Guest:
        server = self.metadata.get(bridge.name)
        service = server.mac if server is not None and not subnet.disable_metadata else None
        name = tap_name(address.ip_address, address.mac_address)
        return Guest(name, address.mac_address, address.ip_address, service)

    def _open(self, address: Address, subnet: Subnet, bridge: Bridge, sockets: Sockets) -> Tap:
        """Tap and guard in one go on the netlink thread."""
        guest = self._guest(address, subnet, bridge)
        tap = open_tap(sockets, guest.tap, bridge, address.mac_address)
        try:
            self._guard.allow_now(sockets, guest)
        except BaseException:
            tap.close()
            raise
        return tap

    async def _enter(
        self, address: Address, subnet: Subnet, bridge: Bridge, hostname: str | None
    ) -> None:
        if hostname is not None:
            self.dhcp.add_lease(
                address.mac_address, address.ip_address, subnet, hostname, bridge.name
            )
        server = self.metadata.get(bridge.name)
        if server is not None and not subnet.disable_metadata:
            await server.add_guest(address.ip_address, address.mac_address)


def identity_document(info: VmInfo) -> bytes:
    """A VM's record as the metadata service gives it."""
    return json_coder.to_json(info, indent=4) + b"\n"


def _close_tap(tap: Tap) -> None:
    tap.close()
