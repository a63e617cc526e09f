"""What to answer to a DHCP message; no I/O and no clock.

Only known MACs are answered, and each always gets its own address: a lease here is an entry that
the agent adds with a VM and removes with it, so nothing expires. What a message does::

                 DISCOVER ──► OFFER            (with option 80: ACK at once, RFC 4039)
                 REQUEST, the lease's address ──► ACK
                 REQUEST, another address ──► NAK
                 REQUEST to another server ──► silence
                 INFORM from the lease's address ──► ACK without address and time
                 DECLINE, RELEASE ──► silence, but the agent is told

A reply has the options 1 (mask), 3 (router), 6 (name servers), 12 (host name), 15 (domain) and,
when asked for, 121 (routes), in the order of the client's parameter request list; without one,
all but 121. Those beside the list are 53, 51, 54, and 61 as the client sent it (RFC 6842).

Option 121 tells a client to ignore option 3, so it repeats the default route, and adds that
169.254.169.254 is on the link: a guest then reaches the metadata service even where no gateway
answers. It is left out where the subnet has metadata disabled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from smallstack.network.dhcp.packet import (
    ANY,
    MAXIMUM_SIZE,
    MessageType,
    Option,
    Packet,
    addresses,
    classless_routes,
    fit,
)
from smallstack.network.subnets import network_of
from smallstack.proto.vm import Subnet

LEASE_SECONDS = 48 * 3600
METADATA = IPv4Network("169.254.169.254/32")
_EVERYWHERE = IPv4Network("0.0.0.0/0")
_MAXIMUM_NAME_SERVERS = 16


@dataclass(frozen=True)
class Lease:
    """An address that belongs to a MAC, and what its owner is told with it."""

    mac: bytes
    ip: IPv4Address
    network: IPv4Network
    router: IPv4Address | None = None
    name_servers: tuple[IPv4Address, ...] = ()
    domain: str = ""
    hostname: str = ""
    metadata: bool = True
    interface: str | None = None
    """The only bridge on which the lease is given; None: any."""

    @classmethod
    def of(
        cls,
        mac: bytes,
        ip: IPv4Address,
        subnet: Subnet,
        hostname: str = "",
        interface: str | None = None,
    ) -> "Lease":
        """The lease of an address in ``subnet``. Raises BadSubnetError."""
        return cls(
            mac=mac,
            ip=ip,
            network=network_of(subnet),
            router=IPv4Address(subnet.ip_gateway),
            name_servers=tuple(map(IPv4Address, subnet.domain_name_servers)),
            domain=subnet.domain_name,
            hostname=hostname,
            metadata=not subnet.disable_metadata,
            interface=interface,
        )

    def options(self) -> dict[int, bytes]:
        """Every option of the lease, in ascending order."""
        found: dict[int, bytes] = {Option.SUBNET_MASK: self.network.netmask.packed}
        if self.router is not None:
            found[Option.ROUTER] = self.router.packed
        if self.name_servers:
            found[Option.DNS] = addresses(self.name_servers[:_MAXIMUM_NAME_SERVERS])
        if self.hostname:
            found[Option.HOST_NAME] = _text(self.hostname)
        if self.domain:
            found[Option.DOMAIN_NAME] = _text(self.domain)
        if self.metadata and self.router is not None:
            found[Option.CLASSLESS_ROUTES] = classless_routes(
                [(METADATA, ANY), (_EVERYWHERE, self.router)]
            )
        return found


@dataclass(frozen=True)
class Interface:
    """Where a message came in: the networks of the interface's own addresses, and the addresses
    by which this server is known there, the preferred first."""

    name: str
    networks: tuple[IPv4Network, ...] = ()
    own: tuple[IPv4Address, ...] = ()

    def reaches(self, ip: IPv4Address) -> bool:
        """Whether the address can be on this link: it is in one of our networks, or we have none
        here and cannot tell."""
        return not self.networks or any(ip in network for network in self.networks)

    def server_id(self, lease: Lease) -> IPv4Address:
        """The address by which the client is to know us: ours in its subnet, else our first, else
        the subnet's gateway."""
        for address in self.own:
            if address in lease.network:
                return address
        return self.own[0] if self.own else lease.router or lease.network[0]


class Event(Enum):
    """What a message meant, for the agent and for the counters."""

    OFFERED = "offered"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    INFORMED = "informed"
    DECLINED = "declined"
    RELEASED = "released"
    UNKNOWN_CLIENT = "unknown client"
    OTHER_SERVER = "for another server"
    WRONG_INTERFACE = "wrong interface"
    NOT_A_REQUEST = "not a client's message"
    RELAYED = "relayed"
    NO_ADDRESS = "no address asked for"


@dataclass(frozen=True)
class Outcome:
    """What came of a message. ``ip`` is the lease's address, where there is one; ``reply`` is to
    be sent to ``destination``, on the link if that is not 255.255.255.255."""

    event: Event
    ip: IPv4Address | None = None
    reply: Packet | None = None
    destination: IPv4Address | None = None


LIMITED_BROADCAST = IPv4Address("255.255.255.255")


@dataclass
class Leases:
    """The leases, by MAC; one address belongs to one MAC."""

    _by_mac: dict[bytes, Lease] = field(default_factory=dict)
    _by_ip: dict[IPv4Address, Lease] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_mac)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._by_mac.values()))

    def add(self, lease: Lease) -> list[Lease]:
        """Put a lease; those it replaces, by MAC or by address, are returned."""
        replaced = [self._by_mac.get(lease.mac), self._by_ip.get(lease.ip)]
        gone = [old for old in dict.fromkeys(replaced) if old is not None]
        for old in gone:
            del self._by_mac[old.mac], self._by_ip[old.ip]
        self._by_mac[lease.mac] = self._by_ip[lease.ip] = lease
        return gone

    def remove(self, ip: IPv4Address) -> Lease | None:
        """Take the lease of an address away."""
        lease = self._by_ip.pop(ip, None)
        if lease is not None:
            del self._by_mac[lease.mac]
        return lease

    def get(self, ip: IPv4Address) -> Lease | None:
        """The lease of an address."""
        return self._by_ip.get(ip)

    def answer(self, request: Packet, interface: Interface) -> Outcome:
        """What to do about a message that came in on ``interface``."""
        if request.op != 1:
            return Outcome(Event.NOT_A_REQUEST)
        if request.giaddr != ANY:
            return Outcome(Event.RELAYED)
        kind = request.message_type
        if kind in {MessageType.OFFER, MessageType.ACK, MessageType.NAK}:
            return Outcome(Event.NOT_A_REQUEST)
        lease = self._by_mac.get(request.chaddr)
        if lease is None:
            return Outcome(Event.UNKNOWN_CLIENT)
        if lease.interface is not None and lease.interface != interface.name:
            return Outcome(Event.WRONG_INTERFACE, lease.ip)
        named = request.address(Option.SERVER_ID)
        ours = {*interface.own, interface.server_id(lease), ANY}
        if named is not None and named not in ours:
            return Outcome(Event.OTHER_SERVER, lease.ip)
        if kind is MessageType.DISCOVER:
            return self._discover(request, lease, interface)
        if kind is MessageType.REQUEST:
            return self._request(request, lease, interface)
        if kind is MessageType.INFORM:
            return self._inform(request, lease, interface)
        event = Event.DECLINED if kind is MessageType.DECLINE else Event.RELEASED
        return Outcome(event, lease.ip)

    def _discover(self, request: Packet, lease: Lease, interface: Interface) -> Outcome:
        if not interface.reaches(lease.ip):
            return Outcome(Event.WRONG_INTERFACE, lease.ip)
        if Option.RAPID_COMMIT in request.options:
            extra: dict[int, bytes] = {Option.RAPID_COMMIT: b""}
            reply = _reply(request, MessageType.ACK, lease, interface, extra)
            return Outcome(Event.ACKNOWLEDGED, lease.ip, reply, _destination(request, lease.ip))
        reply = _reply(request, MessageType.OFFER, lease, interface)
        return Outcome(Event.OFFERED, lease.ip, reply, _destination(request, lease.ip))

    def _request(self, request: Packet, lease: Lease, interface: Interface) -> Outcome:
        wanted = request.address(Option.REQUESTED_IP) or request.ciaddr
        if wanted == ANY:
            return Outcome(Event.NO_ADDRESS, lease.ip)
        if wanted == lease.ip and interface.reaches(lease.ip):
            reply = _reply(request, MessageType.ACK, lease, interface)
            return Outcome(Event.ACKNOWLEDGED, lease.ip, reply, _destination(request, lease.ip))
        return Outcome(
            Event.REFUSED, lease.ip, _refusal(request, lease, interface), LIMITED_BROADCAST
        )

    def _inform(self, request: Packet, lease: Lease, interface: Interface) -> Outcome:
        if request.ciaddr != lease.ip:
            return Outcome(Event.NO_ADDRESS, lease.ip)
        reply = _reply(request, MessageType.ACK, lease, interface)
        reply.yiaddr = ANY
        del reply.options[Option.LEASE_TIME]
        return Outcome(Event.INFORMED, lease.ip, reply, request.ciaddr)


def _reply(
    request: Packet,
    kind: MessageType,
    lease: Lease,
    interface: Interface,
    extra: Mapping[int, bytes] | None = None,
) -> Packet:
    server = interface.server_id(lease)
    options: dict[int, bytes] = {
        Option.MESSAGE_TYPE: bytes((kind,)),
        Option.SERVER_ID: server.packed,
        Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4, "big"),
        **(extra or {}),
    }
    options |= _client_id(request)
    own = lease.options()
    if request.parameters is None:
        own.pop(Option.CLASSLESS_ROUTES, None)
        options |= own
    else:
        options |= {code: own[code] for code in request.parameters if code in own}
    return Packet(
        op=2,
        xid=request.xid,
        flags=request.flags,
        ciaddr=request.ciaddr if kind is MessageType.ACK else ANY,
        yiaddr=lease.ip,
        siaddr=server,
        chaddr=request.chaddr,
        options=fit(options, _limit(request)),
    )


def _refusal(request: Packet, lease: Lease, interface: Interface) -> Packet:
    options: dict[int, bytes] = {
        Option.MESSAGE_TYPE: bytes((MessageType.NAK,)),
        Option.SERVER_ID: interface.server_id(lease).packed,
    }
    return Packet(
        op=2,
        xid=request.xid,
        flags=request.flags,
        chaddr=request.chaddr,
        options=options | _client_id(request),
    )


def _client_id(request: Packet) -> dict[int, bytes]:
    value = request.options.get(Option.CLIENT_ID)
    return {Option.CLIENT_ID: value} if value is not None and len(value) <= 255 else {}


def _limit(request: Packet) -> int:
    """Bytes of the longest message that the client takes, less IP and UDP headers."""
    value = request.options.get(Option.MAXIMUM_SIZE, b"")
    asked = int.from_bytes(value, "big") - 28 if len(value) == 2 else 0
    return min(max(asked, MAXIMUM_SIZE), 1472)


def _destination(request: Packet, ip: IPv4Address) -> IPv4Address:
    """RFC 2131 §4.1: to the client's address if it has one, to everyone if it asks for that."""
    if request.ciaddr != ANY:
        return request.ciaddr
    return LIMITED_BROADCAST if request.is_broadcast else ip


def _text(value: str) -> bytes:
    return value.encode("utf-8", "replace")[:255]
