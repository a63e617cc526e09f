"""The DHCP server: one UDP socket and one packet socket per bridge, on the event loop.

Requests come in through a UDP socket bound to the bridge (the kernel has checked lengths and
checksums and put fragments together); replies leave through a packet socket, straight to the
client's MAC, because a client without an address answers no ARP. A reply is sent before anything
else is done about its request: a guest's ACK is the event that a create waits for.

That a client's MAC is what it says is not checked here: for our taps the guard has done it.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface

from smallstack.network.dhcp.frame import SERVER_PORT, datagram
from smallstack.network.dhcp.leases import (
    LIMITED_BROADCAST,
    Event,
    Interface,
    Lease,
    Leases,
    Outcome,
)
from smallstack.network.dhcp.packet import INPUT_LIMIT, Option, PacketError, decode, encode
from smallstack.network.errors import BridgeMissingError, DhcpPortError
from smallstack.network.macs import mac_text, packed_mac
from smallstack.network.subnets import parse_ip
from smallstack.proto.vm import Subnet

_log = logging.getLogger("smallstack.network")
_BURST = 32
"""Messages read at one go, so that a flood cannot keep the loop from its other work."""
_EVERYBODY = b"\xff" * 6
_ETH_P_IP = 0x0800
_SO_BINDTODEVICE = 25
_TROUBLES = {Event.DECLINED, Event.REFUSED, Event.WRONG_INTERFACE}
_WARN_SECONDS = 60


@dataclass
class _Link:
    """The sockets of one bridge."""

    interface: Interface
    receiver: socket.socket
    sender: socket.socket


Watcher = Callable[[str, bytes], None]


class DhcpServer:
    """Answers DHCP on the bridges it was told to listen on."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.counters: Counter[str] = Counter()
        """How many messages came to which `Event`, by its value, or to which `PacketError`."""
        self.watchers: list[Watcher] = []
        """Called with the bridge's name and the bytes of every message that comes in."""
        self.on_event: list[Callable[[Outcome], None]] = []
        """Called with what came of every message, after the reply is sent."""
        self._links: dict[str, _Link] = {}
        self._waiting: dict[IPv4Address, list[asyncio.Future[None]]] = {}
        self._warned: dict[IPv4Address, float] = {}

    def listen(
        self,
        bridge: str,
        addresses: Sequence[IPv4Interface] = (),
        host_addresses: Sequence[IPv4Address] = (),
    ) -> None:
        """Serve a bridge of the current network namespace, whose own addresses are given;
        ``host_addresses`` are those of other interfaces. Raises DhcpPortError or
        BridgeMissingError."""
        self.ignore(bridge)
        receiver, sender = _open(bridge)
        link = _Link(_interface(bridge, addresses, host_addresses), receiver, sender)
        self._links[bridge] = link
        asyncio.get_running_loop().add_reader(receiver, self._readable, link)

    def set_addresses(
        self,
        bridge: str,
        addresses: Sequence[IPv4Interface],
        host_addresses: Sequence[IPv4Address] = (),
    ) -> None:
        """Take note of a bridge's addresses, and the machine's, after they have changed."""
        if bridge in self._links:
            self._links[bridge].interface = _interface(bridge, addresses, host_addresses)

    def addresses(self, bridge: str) -> tuple[IPv4Address, ...]:
        """The addresses by which the server is known on a bridge, the preferred first."""
        return self._links[bridge].interface.own

    def ignore(self, bridge: str) -> None:
        """Stop serving a bridge; it need not be served."""
        link = self._links.pop(bridge, None)
        if link is not None:
            asyncio.get_running_loop().remove_reader(link.receiver)
            link.receiver.close()
            link.sender.close()

    async def close(self) -> None:
        """Stop serving, and cancel whoever waits."""
        for bridge in list(self._links):
            self.ignore(bridge)
        for waiting in self._waiting.values():
            for future in waiting:
                future.cancel()
        self._waiting.clear()

    def add_lease(
        self,
        mac: str,
        ip: str,
        subnet: Subnet,
        hostname: str = "",
        bridge: str | None = None,
    ) -> None:
        """Give ``ip`` to ``mac`` from now on, on ``bridge`` alone if that is given.

        A lease of the same MAC or the same address is replaced. Raises BadMacError, BadIpError
        or BadSubnetError.
        """
        lease = Lease.of(packed_mac(mac), parse_ip(ip), subnet, hostname, bridge)
        for old in self.leases.add(lease):
            if old.ip != lease.ip:
                _log.warning(
                    "DHCP lease %s of %s gives way to %s of %s", old.ip, mac_text(old.mac), ip, mac
                )
                self._give_up(old.ip)

    def rename(self, ip: str, hostname: str) -> None:
        """Give the lease of an address another host name; who waits for it goes on waiting.

        It need not be known. Raises BadIpError."""
        lease = self.leases.get(parse_ip(ip))
        if lease is not None:
            self.leases.add(replace(lease, hostname=hostname))

    def remove_lease(self, ip: str) -> None:
        """Answer no more for this address, and cancel who waits for it; it need not be known."""
        address = parse_ip(ip)
        self.leases.remove(address)
        self._warned.pop(address, None)
        self._give_up(address)

    def acknowledged(self, ip: str) -> asyncio.Future[None]:
        """A future that is done when the next ACK for the address has been sent; it is cancelled
        when the lease is removed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        address = parse_ip(ip)
        self._waiting.setdefault(address, []).append(future)
        future.add_done_callback(lambda done: self._forget(address, done))
        return future

    def _forget(self, address: IPv4Address, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(address)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[address]

    def _give_up(self, address: IPv4Address) -> None:
        for future in self._waiting.pop(address, []):
            future.cancel()

    def _readable(self, link: _Link) -> None:
        for _ in range(_BURST):
            try:
                data, _source = link.receiver.recvfrom(INPUT_LIMIT + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # the bridge went down or away
                self.counters["receive error"] += 1
                _log.warning("DHCP on %s: %s", link.interface.name, error.strerror)
                return
            self._handle(link, data)

    def _handle(self, link: _Link, data: bytes) -> None:
        for watcher in self.watchers:
            watcher(link.interface.name, data)
        try:
            request = decode(data)
        except PacketError as error:
            self.counters[error.reason] += 1
            return
        outcome = self.leases.answer(request, link.interface)
        self._send(link, outcome)
        self.counters[outcome.event.value] += 1
        if outcome.event is Event.ACKNOWLEDGED and outcome.ip is not None:
            for future in self._waiting.pop(outcome.ip, []):
                if not future.done():
                    future.set_result(None)
        self._tell(link.interface.name, outcome, request.chaddr)
        for listener in self.on_event:
            listener(outcome)

    def _tell(self, bridge: str, outcome: Outcome, mac: bytes) -> None:
        """Log what concerns a guest of ours; its troubles once a minute, or it could fill disks."""
        if outcome.ip is None:
            return
        level = logging.DEBUG
        if outcome.event in _TROUBLES:
            now = time.monotonic()
            if now - self._warned.get(outcome.ip, -_WARN_SECONDS) >= _WARN_SECONDS:
                self._warned[outcome.ip] = now
                level = logging.WARNING
        _log.log(
            level, "DHCP on %s: %s, %s %s", bridge, outcome.event.value, mac_text(mac), outcome.ip
        )

    def _send(self, link: _Link, outcome: Outcome) -> None:
        reply, destination = outcome.reply, outcome.destination
        if reply is None or destination is None:
            return
        server = reply.address(Option.SERVER_ID) or reply.siaddr
        packet = datagram(encode(reply), server, destination)
        mac = _EVERYBODY if destination == LIMITED_BROADCAST else reply.chaddr
        try:
            link.sender.sendto(packet, (link.interface.name, _ETH_P_IP, 0, 0, mac))
        except OSError as error:
            self.counters["send error"] += 1
            _log.warning("DHCP reply on %s: %s", link.interface.name, error.strerror)


def _interface(
    bridge: str, addresses: Sequence[IPv4Interface], host_addresses: Sequence[IPv4Address]
) -> Interface:
    own = dict.fromkeys([*(a.ip for a in addresses), *host_addresses])
    return Interface(bridge, tuple(a.network for a in addresses), tuple(own))


def _open(bridge: str) -> tuple[socket.socket, socket.socket]:
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | flags)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, bridge.encode() + b"\0")
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        receiver.bind(("0.0.0.0", SERVER_PORT))
        # Protocol 0: it receives nothing.
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | flags, 0)
    except OSError as error:
        receiver.close()
        try:
            socket.if_nametoindex(bridge)
        except OSError:
            raise BridgeMissingError(name=bridge) from None
        raise DhcpPortError(bridge=bridge, detail=error.strerror) from error
    return receiver, sender
