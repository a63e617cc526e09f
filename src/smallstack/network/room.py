"""The network of one Hypervisor, put together.

::

    open ──► install(ports of VMs that run) ──► attach | adopt ──► detach … ──► close

`Network.open` takes bridges into service: metadata, DHCP. `Network.install` puts the guard in
force, in one transaction, for VMs that outlived the last agent. `Network.attach` gives one address
of a VM its port (tap, lease, a place in the guard and among the metadata service's neighbours),
`Network.adopt` the same but for the tap, which a QEMU holds already, and `Network.detach` takes it
all away. Subnets are followed as the address book has them, uplinks as the bridges have them.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from smallstack.network.book import AddressBook, Change
from smallstack.network.bridge import Bridge, choose_bridge, ensure_bridge, list_bridges
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.errors import NetworkError, NoUsableBridgeError, VlanMissingError
from smallstack.network.guard import Guard, Guest
from smallstack.network.metadata.routes import Rules
from smallstack.network.metadata.server import Lookup, MetadataServer, Sign
from smallstack.network.metadata.tracers import Tracers
from smallstack.network.monitor import LinkChange, LinkMonitor, until_operational
from smallstack.network.names import service_name
from smallstack.network.netlink import Netlink, Sockets, interface_exists
from smallstack.network.tap import Tap, delete_tap, open_tap, tap_busy, tap_name
from smallstack.proto.vm import Subnet

_log = logging.getLogger("smallstack.network")
_CARRIER_SECONDS = 5
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@dataclass(frozen=True)
class BridgeSpec:
    """A bridge to serve: made if it is missing and ``create`` says so, and given ``address``
    (``198.51.100.1/24``) if there is one."""

    name: str
    address: str | None = None
    create: bool = False


@dataclass(frozen=True)
class Port:
    """One address of a VM, and what its owner is told by DHCP. Without an IP (a network whose
    DHCP is somebody else's) it has a tap, but no lease and no metadata."""

    mac: str
    ip: str
    subnet: Subnet
    hostname: str = ""
    queues: int = 1

    @property
    def tap(self) -> str:
        """The name of the port's tap."""
        return tap_name(self.ip, self.mac)


class Network:
    """Bridges in service. Use `open` and `close`."""

    def __init__(self, netlink: Netlink, book: AddressBook) -> None:
        self.netlink = netlink
        self.book = book
        self.guard = Guard(netlink)
        self.dhcp = DhcpServer()
        self.tracers = Tracers()
        self.bridges: dict[str, Bridge] = {}
        self.services: dict[str, MetadataServer] = {}
        self.on_tap_gone: list[Callable[[str], None]] = []
        """Called with the name of each tap of a VM that is taken away, by whomever."""
        self._monitor: LinkMonitor | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._again = False
        self._installed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        book: AddressBook,
        bridges: Sequence[BridgeSpec],
        *,
        lookup: Lookup,
        control_port: int | None,
        rules: Rules | None = None,
        sign: Sign | None = None,
    ) -> "Network":
        """Serve these bridges, or with none named every bridge there is.

        ``lookup`` finds a VM by its primary address, for the metadata service, whose ``rules`` and
        ``sign`` the others are; ``control_port`` is opened beside it, unless it is None. Raises
        NetworkError; then nothing is left behind but a bridge that was made.
        """
        network = cls(await Netlink.open(), book)
        try:
            await network._start(
                bridges,
                lambda bridge: MetadataServer(bridge, lookup, network.tracers, rules, sign),
                control_port,
            )
        except BaseException:
            await network.close()
            raise
        return network

    async def _start(
        self,
        specs: Sequence[BridgeSpec],
        serving: Callable[[Bridge], MetadataServer],
        control_port: int | None,
    ) -> None:
        for spec in specs:
            await ensure_bridge(self.netlink, spec.name, spec.address, create=spec.create)
        wanted = {spec.name for spec in specs}
        everything = await list_bridges(self.netlink)
        self.bridges = {b.name: b for b in everything if not wanted or b.name in wanted}
        if not self.bridges:
            raise NoUsableBridgeError(subnet="any", vlan_id=0, known="none")
        for bridge in self.bridges.values():
            service = serving(bridge)
            await service.start(self.netlink, control_port)
            self.services[bridge.name] = service
        for name in self.bridges:
            if not await until_operational(self.netlink, name, _CARRIER_SECONDS):
                _log.warning("bridge %s has no carrier: its guests may not be heard", name)
        await self.warn_of_packet_filter()
        await self._follow_subnets(self.book.subnets)
        self.book.on_change.append(self._book_changed)
        host = await self._host_addresses()
        for bridge in self.bridges.values():
            self.dhcp.listen(bridge.name, bridge.addresses, host)
        self._monitor = LinkMonitor(self._links_changed, self._tap_gone)

    async def install(self, running: Iterable[Port]) -> None:
        """Put the guard in force, for these ports. One whose subnet has no bridge any more is left
        out. Raises GuardError."""
        guests = []
        for port in running:
            try:
                guests.append(self._guest(port))
            except NoUsableBridgeError as error:
                _log.warning("%s: %s", port.ip, error)
        await self.guard.install(
            guests=guests, uplinks=self._uplinks(), services=map(service_name, self.bridges)
        )
        self._installed = True

    async def close(self, *, remove_guard: bool = False) -> None:
        """Stop serving. VMs that run keep their taps and, unless ``remove_guard``, stay guarded."""
        with suppress(ValueError):
            self.book.on_change.remove(self._book_changed)
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        for task in [*self._tasks]:
            task.cancel()
        if self._tasks:
            await asyncio.wait([*self._tasks])
        await self.dhcp.close()
        for service in self.services.values():
            await service.close()
        self.services.clear()
        if remove_guard:
            await self.guard.remove()
        await self.netlink.close()

    @property
    def control_sockets(self) -> list[socket.socket]:
        """Listening sockets on 169.254.169.254 and the control port, one per bridge, for the
        daemon's listener; they are closed with the network."""
        found = (service.control_socket for service in self.services.values())
        return [sock for sock in found if sock is not None]

    def bridge_for(self, subnet: Subnet) -> Bridge:
        """The bridge on which VMs of the subnet are. Raises NoUsableBridgeError, for a VLAN that
        no bridge carries as for no bridge at all: nobody would tag the frames."""
        bridge, tag = choose_bridge(subnet.id, subnet.vlan_id, list(self.bridges.values()))
        if tag:
            raise VlanMissingError(subnet=subnet.id, vlan_id=tag, name="br@" + subnet.id)
        return bridge

    async def attach(self, port: Port, *, lease: bool = True) -> Tap:
        """Make the port: from its return on, the guest gets DHCP and metadata; with ``lease``
        false, metadata alone.

        Whoever gets the tap closes it. Raises NetworkError; then, as when cancelled, nothing is
        left behind.
        """
        bridge = self.bridge_for(port.subnet)
        guest = self._guest(port)
        if port.tap in self.guard.state.guests and interface_exists(port.tap):
            raise tap_busy(port.tap)  # before anything of the one that has it is touched

        def work(sockets: Sockets) -> Tap:
            tap = open_tap(sockets, port.tap, bridge, port.mac, queues=port.queues)
            try:
                self.guard.allow_now(sockets, guest)
            except BaseException:
                tap.close()
                raise
            return tap

        tap: Tap | None = None
        try:
            # Two threads: this machine's netlink sockets, and those of the metadata namespace.
            adopting = asyncio.ensure_future(self.adopt(port, lease=lease))
            try:
                tap = await self.netlink.run(work, Tap.close)
            finally:
                await adopting
        except BaseException:
            if tap is not None:
                await self.close_tap(tap)
            await self._forget(port.ip, port.tap)
            raise
        return tap

    async def adopt(self, port: Port, *, lease: bool = True) -> None:
        """Serve a port whose tap a QEMU has, and which `install` was told of.

        Raises NetworkError.
        """
        if not port.ip:
            return
        bridge = self.bridge_for(port.subnet).name
        if lease:
            self.dhcp.add_lease(port.mac, port.ip, port.subnet, port.hostname, bridge)
        if not port.subnet.disable_metadata:
            await self.services[bridge].add_guest(port.ip, port.mac)

    async def detach(self, ip: str, mac: str = "", *, keep_lease: bool = False) -> None:
        """Take a port away, and its tap with it if it is still there; it need not be known.

        ``keep_lease`` for a VM that is about to have another one: who waits goes on waiting.
        Raises NetworkError.
        """
        name = tap_name(ip, mac)
        await self._forget(ip, name, keep_lease=keep_lease)
        await delete_tap(self.netlink, name)

    async def close_tap(self, tap: Tap) -> None:
        """Close a tap off the event loop: the kernel takes 16 ms to remove one."""
        await self.netlink.run(lambda _: tap.close())

    def acknowledged(self, ip: str) -> asyncio.Future[None]:
        """A future that is done when the guest's next DHCP ACK has been sent; cancelled by
        `detach`."""
        return self.dhcp.acknowledged(ip)

    def _guest(self, port: Port) -> Guest:
        service = self.services[self.bridge_for(port.subnet).name]
        mac = None if port.subnet.disable_metadata else service.mac
        return Guest(port.tap, port.mac, port.ip, mac)

    async def _forget(self, ip: str, tap: str, *, keep_lease: bool = False) -> None:
        if ip:
            if not keep_lease:
                self.dhcp.remove_lease(ip)
            for service in self.services.values():
                await service.remove_guest(ip)
        await self.guard.revoke(tap)

    async def warn_of_packet_filter(self) -> None:
        """Log it if frames between VMs pass a packet filter of the machine: Docker's, for one,
        drops what it does not know."""
        try:
            if _BRIDGE_NETFILTER.read_text().strip() != "1":
                return
        except OSError:
            return
        if await self.netlink.run(lambda sockets: sockets.nft.has_forward_filter()):
            _log.warning(
                "frames between VMs pass this machine's packet filter, which may drop them: "
                "`sysctl net.bridge.bridge-nf-call-iptables=0` ends that"
            )

    # The machine and the address book change

    def _uplinks(self) -> set[str]:
        return {name for bridge in self.bridges.values() for name in bridge.uplinks}

    async def _host_addresses(self) -> list[IPv4Address]:
        def work(sockets: Sockets) -> list[IPv4Address]:
            found = []
            for entry in sockets.route.get_addr(family=socket.AF_INET):
                address = IPv4Address(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
                if not address.is_loopback and not address.is_link_local:
                    found.append(address)
            return found

        return await self.netlink.run(work)

    def _links_changed(self, changes: Sequence[LinkChange] | None) -> None:
        uplinks = self._uplinks()
        ours = {bridge.index for bridge in self.bridges.values()}
        services = set(map(service_name, self.bridges))
        if changes is not None and all(
            (change.master in ours) == (change.name in uplinks)
            for change in changes
            if change.name not in services
        ):
            return  # as we know it; asking for all interfaces costs 1 ms for each of them
        self._again = True
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._spawn(self._refresh())

    def _tap_gone(self, name: str) -> None:
        for listener in self.on_tap_gone:
            listener(name)

    async def _refresh(self) -> None:
        while self._again:
            self._again = False
            try:
                for bridge in await list_bridges(self.netlink):
                    if bridge.name in self.bridges:
                        self.bridges[bridge.name] = bridge
                host = await self._host_addresses()
                for bridge in self.bridges.values():
                    self.dhcp.set_addresses(bridge.name, bridge.addresses, host)
                if self._installed and self._uplinks() != self.guard.state.uplinks:
                    await self.guard.set_uplinks(self._uplinks())
            except NetworkError as error:
                _log.error("cannot follow a change of the bridges: %s", error)

    def _book_changed(self, change: Change) -> None:
        if change.subnets is not None:
            self._spawn(self._follow_subnets(change.subnets))

    async def _follow_subnets(self, subnets: Iterable[Subnet]) -> None:
        listed = list(subnets)
        for service in self.services.values():
            try:
                await service.set_subnets(listed)
            except NetworkError as error:
                _log.error("metadata on %s: %s", service.bridge.name, error)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
