"""VMs in the terms of the network: each of their addresses is a port of a bridge.

::

    connect ──► a port for every address: tap, guard, lease ─► Nics
    resume  ──► the same but for the taps: a QEMU that outlived the agent has them
    disconnect ─ the ports are taken away; taps go with their last descriptor
"""

import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from smallstack.network.book import AddressBook
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.errors import NetworkError, SubnetMissingError
from smallstack.network.metadata.routes import Rules
from smallstack.network.metadata.server import Lookup, Sign
from smallstack.network.metadata.tracers import Tracers
from smallstack.network.room import BridgeSpec, Network, Port
from smallstack.network.tap import Tap, delete_tap, list_taps, tap_name
from smallstack.proto.vm import Address, VmInfo

_log = logging.getLogger("smallstack.hypervisor")


@dataclass
class Nic:
    """One interface of a VM that is connected: whoever has it closes the tap."""

    address: Address
    tap: Tap


def addresses_of(info: VmInfo) -> list[tuple[Address, str]]:
    """Every address of a VM with the id of its subnet, the primary one first."""
    ids = [info.subnet_id, *info.secondary_subnet_ids]
    return list(zip([info.address, *info.secondary_addresses], ids, strict=False))


def queues_of(info: VmInfo) -> list[int]:
    """How many queues each interface of a VM has; an emulated e1000 has one."""
    asked = [entry.num_queues for entry in info.network_entries]
    count = len(addresses_of(info))
    if info.disable_virtio:
        asked = []
    return [max(1, number) for number in (*asked, *[1] * count)][:count]


def taps_of(info: VmInfo) -> set[str]:
    """Names of the taps of a VM."""
    return {tap_name(a.ip_address, a.mac_address) for a, _ in addresses_of(info)}


class Wiring:
    """The network of all VMs."""

    def __init__(self, network: Network, book: AddressBook) -> None:
        """Use `open`."""
        self._network = network
        self._book = book

    @classmethod
    async def open(
        cls,
        book: AddressBook,
        names: Sequence[str],
        address: str | None,
        lookup: Lookup,
        control_port: int | None,
        rules: Rules | None = None,
        sign: Sign | None = None,
    ) -> "Wiring":
        """Serve the named bridges, or all there are. With an ``address`` the first one is made
        if it is missing, and gets it; the rest as in `Network.open`. Raises NetworkError."""
        specs = [
            BridgeSpec(name, address if first else None, create=first and address is not None)
            for name in names
            for first in [name == names[0]]
        ]
        network = await Network.open(
            book, specs, lookup=lookup, control_port=control_port, rules=rules, sign=sign
        )
        return cls(network, book)

    @property
    def dhcp(self) -> DhcpServer:
        """Who answers the guests' DHCP."""
        return self._network.dhcp

    @property
    def tracers(self) -> Tracers:
        """Who watches the guests' metadata requests."""
        return self._network.tracers

    @property
    def bridges(self) -> list[str]:
        """Names of the bridges in service."""
        return sorted(self._network.bridges)

    @property
    def control_sockets(self) -> list[socket.socket]:
        """Listening sockets on 169.254.169.254 and the control port; the caller's to close."""
        return [sock.dup() for sock in self._network.control_sockets]

    def on_tap_gone(self, listener: Callable[[str], None]) -> None:
        """Have the name of every tap told that is taken away: QEMU does that at its end."""
        self._network.on_tap_gone.append(listener)

    async def install(self, vms: Iterable[VmInfo]) -> None:
        """Guard the bridges, letting exactly these VMs through; once, at start."""
        ports: list[Port] = []
        for info in vms:
            try:
                ports += self._ports(info)
            except NetworkError as error:
                _log.warning("%s: %s", info.address.ip_address, error)
        await self._network.install(ports)

    async def connect(self, info: VmInfo, *, lease: bool) -> list[Nic]:
        """The ports of a VM; when it raises, nothing is left of them."""
        nics: list[Nic] = []
        try:
            for port in self._ports(info):
                tap = await self._network.attach(port, lease=lease)
                nics.append(Nic(Address(ip_address=port.ip, mac_address=port.mac), tap))
        except BaseException:
            for nic in nics:
                await self._network.close_tap(nic.tap)
                await self._network.detach(nic.address.ip_address, nic.address.mac_address)
            raise
        return nics

    async def resume(self, info: VmInfo, *, lease: bool) -> None:
        """Leases and metadata of a VM whose machine was found; the guard knows it already."""
        for port in self._ports(info):
            await self._network.adopt(port, lease=lease)

    def rename(self, info: VmInfo) -> None:
        """Have a connected VM told its new host name by DHCP."""
        for address, _ in addresses_of(info):
            if address.ip_address:
                self.dhcp.rename(address.ip_address, info.hostname)

    async def disconnect(self, info: VmInfo, *, keep_lease: bool = False) -> None:
        """Take the ports of a VM away. What was never connected is fine."""
        for address, _ in addresses_of(info):
            await self._network.detach(
                address.ip_address, address.mac_address, keep_lease=keep_lease
            )

    async def close_taps(self, nics: Iterable[Nic]) -> None:
        """Close our descriptors, off the loop: the last one of a tap takes the kernel 16 ms."""
        for nic in nics:
            await self._network.close_tap(nic.tap)

    async def remove_leftovers(self, vms: Iterable[VmInfo]) -> None:
        """Remove taps of ours that belong to none of these VMs."""
        wanted = {name for info in vms for name in taps_of(info)}
        for name in await list_taps(self._network.netlink):
            if name not in wanted and await delete_tap(self._network.netlink, name):
                _log.warning("removed the tap %s, which no VM has", name)

    async def close(self) -> None:
        """Stop serving. The guard stays: running VMs are guarded while the agent is away."""
        with suppress(NetworkError):
            await self._network.close()

    def _ports(self, info: VmInfo) -> list[Port]:
        """Raises SubnetMissingError."""
        ports = []
        for (address, subnet_id), queues in zip(addresses_of(info), queues_of(info), strict=True):
            subnet = self._book.subnets.get(subnet_id)
            if subnet is None:
                raise SubnetMissingError(subnet=subnet_id)
            ports.append(
                Port(address.mac_address, address.ip_address, subnet, info.hostname, queues)
            )
        return ports
