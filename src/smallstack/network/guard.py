"""Rules by which a guest cannot pass for another where it matters: DHCP and metadata.

One nftables table of the bridge family, ``smallstack``, holds constant rules; VMs are elements of
its sets, so that adding or removing one is a single small transaction. The rules, as `nft` would
have them::

    prerouting:  iifname "ss-*", "ssm*" (our taps)  -> guest
                 iifname @uplinks                   -> drop 169.254.0.0/16, IPv4 and ARP
    guest:       IPv4 or ARP from 169.254.169.254 -> drop
                 IPv4 to 169.254.169.254: iifname . ether saddr . ip saddr in @metadata
                     -> destination MAC becomes that of the metadata service, accept; else drop
                 UDP to port 67, over 20 a second from one tap (@pace) -> drop
                 UDP to port 67: iifname . ether saddr . ip saddr in @dhcp (the VM's own address
                     or 0.0.0.0) and iifname . chaddr in @hardware -> accept
                 UDP to port 67: iifname . ether saddr in @external (no address of ours) and
                     iifname . chaddr in @hardware -> accept; else drop
                 UDP to port 68: the same in @identity (the VM's own address alone)
                 a double VLAN tag whose outer identifier is 0 -> drop
    forward:     IPv4 from @services (the metadata service): oifname . ether daddr . ip daddr
                     in @identity -> accept; else drop
    postrouting: oifname @uplinks                   -> drop 169.254.0.0/16, IPv4 and ARP

Nothing else is filtered. ``uplinks`` are the ports of our bridges that are neither taps of ours
nor the metadata service. A tap that no element names gets neither DHCP nor metadata: the order of
making a tap and allowing it does not matter for safety.

The table outlives the agent, so that running VMs stay guarded while it is restarted; `install`
replaces it in one transaction, `remove` takes it away.

Frames with a VLAN tag: the kernel has moved an outer tag out of the frame before the bridge sees
it, so the rules ask for the packet's protocol (``meta protocol``), never for the frame's type
field, and hold for singly tagged frames too. The kernel would strip a second tag only behind an
outer identifier of 0, hence the last rule of ``guest``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from smallstack.network import nfnetlink as nf
from smallstack.network.errors import GuardError, NoPrivilegeError
from smallstack.network.macs import packed_mac
from smallstack.network.names import TAP_PREFIXES
from smallstack.network.netlink import Netlink, Sockets
from smallstack.telemetry.errors import describe

TABLE = "smallstack"
METADATA_ADDRESS = IPv4Address("169.254.169.254")
DHCP_PER_SECOND, DHCP_BURST = 20, 20
"""How many DHCP messages of one guest the agent has to look at."""
_LINK_LOCAL = bytes([169, 254])
_IPV4, _ARP = b"\x08\x00", b"\x08\x06"
_UDP = b"\x11"
# Registers of a concatenated key: a name fills four 32-bit ones, a MAC two.
_NAME, _MAC, _IP = nf.REGISTER, 12, 14


@dataclass(frozen=True)
class Guest:
    """Which MAC and IPv4 address may use a tap; ``service`` is the metadata service's MAC.

    Without an address (which somebody else's DHCP gives) only the MAC has to agree, and there is
    no metadata.
    """

    tap: str
    mac: str
    ip: str
    service: str | None = None

    def elements(self) -> dict[str, list[tuple[bytes, bytes | None]]]:
        """The set elements that stand for this guest."""
        name, mac = nf.ifname(self.tap), packed_mac(self.mac)
        padded = mac + b"\0\0"
        if not self.ip:
            return {
                "external": [(name + padded, None)],
                "hardware": [(name + padded, None)],
                "pace": [(name, None)],
            }
        own = name + padded + IPv4Address(self.ip).packed
        found: dict[str, list[tuple[bytes, bytes | None]]] = {
            "dhcp": [(own, None), (name + padded + bytes(4), None)],
            "hardware": [(name + padded, None)],
            "identity": [(own, None)],
            "pace": [(name, None)],
        }
        if self.service is not None:
            found["metadata"] = [(own, packed_mac(self.service))]
        return found


@dataclass
class State:
    """All that the table is made from."""

    guests: dict[str, Guest] = field(default_factory=dict)
    uplinks: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)


def build(state: State) -> nf.Batch:
    """The transaction that replaces the table, whether it is there or not, by this state."""
    batch = nf.Batch(TABLE)
    batch.add_table()
    batch.delete_table()
    batch.add_table()
    batch.add_set("uplinks", [nf.IFNAME])
    batch.add_set("services", [nf.IFNAME])
    triple = [nf.IFNAME, nf.ETHER_ADDR, nf.IPV4_ADDR]
    batch.add_set("dhcp", triple)
    batch.add_set("identity", triple)
    batch.add_set("metadata", triple, nf.ETHER_ADDR)
    batch.add_set("hardware", [nf.IFNAME, nf.ETHER_ADDR])
    batch.add_set("pace", [nf.IFNAME], each=nf.over_rate(DHCP_PER_SECOND, DHCP_BURST))
    batch.add_set("external", [nf.IFNAME, nf.ETHER_ADDR])
    for chain in ("guest", "link-local"):
        batch.add_chain(chain)
    batch.add_chain("prerouting", nf.PREROUTING, nf.DSTNAT_PRIORITY)
    batch.add_chain("forward", nf.FORWARD, nf.FILTER_PRIORITY)
    batch.add_chain("postrouting", nf.POSTROUTING, nf.FILTER_PRIORITY)
    for chain, expressions in _rules():
        batch.add_rule(chain, *expressions)
    batch.add_elements("uplinks", ((nf.ifname(name), None) for name in sorted(state.uplinks)))
    batch.add_elements("services", ((nf.ifname(name), None) for name in sorted(state.services)))
    merged: dict[str, list[tuple[bytes, bytes | None]]] = {}
    for guest in state.guests.values():
        for name, elements in guest.elements().items():
            merged.setdefault(name, []).extend(elements)
    for name, elements in merged.items():
        batch.add_elements(name, elements)
    return batch


def _rules() -> Iterable[tuple[str, tuple[bytes, ...]]]:
    drop, accept = nf.verdict(nf.DROP), nf.verdict(nf.ACCEPT)
    ipv4 = (nf.meta(nf.META_PROTOCOL), nf.compare(_IPV4))
    arp = (nf.meta(nf.META_PROTOCOL), nf.compare(_ARP))
    udp = (nf.meta(nf.META_L4PROTO), nf.compare(_UDP))
    source = (
        nf.meta(nf.META_IIFNAME, _NAME),
        nf.payload(nf.LINK, 6, 6, _MAC),
        nf.payload(nf.NETWORK, 12, 4, _IP),
    )
    for prefix in TAP_PREFIXES:
        yield (
            "prerouting",
            (
                nf.meta(nf.META_IIFNAME),
                nf.compare(prefix.encode()),
                nf.verdict(nf.JUMP, "guest"),
            ),
        )
    jump = nf.verdict(nf.JUMP, "link-local")
    yield "prerouting", (nf.meta(nf.META_IIFNAME), nf.lookup("uplinks"), jump)
    yield "postrouting", (nf.meta(nf.META_OIFNAME), nf.lookup("uplinks"), jump)
    # IPv4 source and destination; ARP's sender and target protocol address (RFC 826).
    for protocol, offsets in ((ipv4, (12, 16)), (arp, (14, 24))):
        for offset in offsets:
            within = (nf.payload(nf.NETWORK, offset, 2), nf.compare(_LINK_LOCAL))
            yield "link-local", (*protocol, *within, nf.counter(), drop)

    to_metadata = (
        *ipv4,
        nf.payload(nf.NETWORK, 16, 4),
        nf.compare(METADATA_ADDRESS.packed),
    )
    redirect = (nf.lookup("metadata", into=nf.REGISTER), nf.store(nf.LINK, 0, 6))
    for protocol, offset in ((ipv4, 12), (arp, 14)):
        as_service = (nf.payload(nf.NETWORK, offset, 4), nf.compare(METADATA_ADDRESS.packed))
        yield "guest", (*protocol, *as_service, nf.counter(), drop)
    yield "guest", (*to_metadata, *source, *redirect, accept)
    yield "guest", (*to_metadata, nf.counter(), drop)

    def to_port(number: int) -> tuple[bytes, ...]:
        return (
            *ipv4,
            *udp,
            nf.payload(nf.TRANSPORT, 2, 2),
            nf.compare(number.to_bytes(2, "big")),
        )

    # chaddr: 28 bytes into the message (RFC 2131), behind 8 of UDP.
    hardware = (
        nf.meta(nf.META_IIFNAME, _NAME),
        nf.payload(nf.TRANSPORT, 8 + 28, 6, _MAC),
        nf.lookup("hardware"),
    )
    too_fast = (nf.meta(nf.META_IIFNAME), nf.lookup("pace"))
    yield "guest", (*to_port(67), *too_fast, nf.counter(), drop)
    yield "guest", (*to_port(67), *source, nf.lookup("dhcp"), *hardware, accept)
    yield "guest", (*to_port(67), *source[:2], nf.lookup("external"), *hardware, accept)
    yield "guest", (*to_port(67), nf.counter(), drop)
    yield "guest", (*to_port(68), *source, nf.lookup("identity"), accept)
    yield "guest", (*to_port(68), nf.counter(), drop)
    for tagged in (b"\x81\x00", b"\x88\xa8"):
        yield (
            "guest",
            (
                nf.meta(nf.META_PROTOCOL),
                nf.compare(tagged),
                nf.payload(nf.LINK, 14, 2),
                nf.mask(b"\x0f\xff"),
                nf.compare(b"\0\0"),
                nf.counter(),
                drop,
            ),
        )

    answer = (
        nf.meta(nf.META_OIFNAME, _NAME),
        nf.payload(nf.LINK, 0, 6, _MAC),
        nf.payload(nf.NETWORK, 16, 4, _IP),
        nf.lookup("identity"),
    )
    from_service = (nf.meta(nf.META_IIFNAME), nf.lookup("services"))
    yield "forward", (*ipv4, *from_service, *answer, accept)
    yield "forward", (*ipv4, *from_service, nf.counter(), drop)


class Guard:
    """The table of one network namespace and what is in it."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self.state = State()

    async def install(
        self,
        *,
        guests: Iterable[Guest] = (),
        uplinks: Iterable[str] = (),
        services: Iterable[str] = (),
    ) -> None:
        """Replace the table, in one transaction, by one with exactly these. Raises GuardError."""
        self.state = State({guest.tap: guest for guest in guests}, set(uplinks), set(services))
        state = self.state
        await self._netlink.run(lambda sockets: _commit(sockets, build(state), "install the guard"))

    async def remove(self) -> None:
        """Take the table away, with every rule in it; it need not be there."""
        self.state = State()

        def work(sockets: Sockets) -> None:
            batch = nf.Batch(TABLE)
            batch.add_table()
            batch.delete_table()
            _commit(sockets, batch, "remove the guard")

        await self._netlink.run(work)

    async def allow(self, tap: str, mac: str, ip: str, service: str | None = None) -> None:
        """Let the guest behind ``tap`` use DHCP and, with a ``service`` MAC, metadata, under this
        MAC and IPv4 address. What was allowed for the tap before is replaced.

        Raises GuardError.
        """
        guest = Guest(tap, mac, ip, service)
        await self._netlink.run(lambda sockets: self.allow_now(sockets, guest))

    async def revoke(self, tap: str) -> None:
        """Forget the guest behind ``tap``; it need not be known. Raises GuardError."""
        await self._netlink.run(lambda sockets: self.revoke_now(sockets, tap))

    def allow_now(self, sockets: Sockets, guest: Guest) -> None:
        """`allow`, from within the netlink thread."""
        batch = nf.Batch(TABLE)
        old = self.state.guests.get(guest.tap)
        if old == guest:
            return
        if old is not None:
            _delete(batch, old.elements())
        for name, elements in guest.elements().items():
            batch.add_elements(name, elements)
        _commit(sockets, batch, f"let {guest.ip} through")
        self.state.guests[guest.tap] = guest

    def revoke_now(self, sockets: Sockets, tap: str) -> None:
        """`revoke`, from within the netlink thread."""
        guest = self.state.guests.get(tap)
        if guest is None:
            return
        batch = nf.Batch(TABLE)
        _delete(batch, guest.elements())
        _commit(sockets, batch, f"shut {guest.ip} out")
        del self.state.guests[tap]

    async def set_uplinks(self, names: Iterable[str]) -> None:
        """Replace the set of ports that metadata must not pass. Raises GuardError."""
        new = set(names)
        await self._netlink.run(lambda sockets: self._replace_uplinks(sockets, new))

    def _replace_uplinks(self, sockets: Sockets, new: set[str]) -> None:
        old = self.state.uplinks
        batch = nf.Batch(TABLE)
        if old - new:
            batch.delete_elements("uplinks", [nf.ifname(name) for name in sorted(old - new)])
        if new - old:
            batch.add_elements("uplinks", [(nf.ifname(n), None) for n in sorted(new - old)])
        _commit(sockets, batch, "set the uplinks")
        self.state.uplinks = new


def _delete(batch: nf.Batch, elements: Mapping[str, Iterable[tuple[bytes, bytes | None]]]) -> None:
    for name, listed in elements.items():
        batch.delete_elements(name, [key for key, _value in listed])


def _commit(sockets: Sockets, batch: nf.Batch, action: str) -> None:
    try:
        sockets.nft.commit(batch)
    except PermissionError:
        raise NoPrivilegeError(action=action) from None
    except OSError as error:
        raise GuardError(action=action, detail=describe(error)) from error
