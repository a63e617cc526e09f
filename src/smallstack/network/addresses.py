"""The address pool: which addresses are registered here, and which of them are free. Pure.

The order of the free list is part of the behaviour: a VM gets the first free address of its
subnet, and an address given back goes to the end. A change makes another pool, so that a caller
can write it to disk before it takes effect; an error changes nothing. See book.py.

One address in a pool::

            add                take
    (none) ────► free + registered ────► registered (in use)
       ▲              │      ▲                 │
       └── remove ────┘      └──── release ────┘
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from smallstack.network.errors import (
    AddressInUseError,
    AddressNotFreeError,
    AddressOfVmError,
    DuplicateAddressError,
    MacOfVmError,
    NoFreeAddressError,
    NoMatchingSubnetError,
    NotInPoolError,
    NotRegisteredError,
    PoolEmptyError,
)
from smallstack.network.macs import mac_text, packed_mac
from smallstack.network.subnets import PSEUDO, Subnets, parse_ip
from smallstack.proto.vm import Address, Subnet


def normal(address: Address) -> Address:
    """The address with its IP as dotted text. Raises BadMacError or BadIpError."""
    packed_mac(address.mac_address)
    ip = str(parse_ip(address.ip_address)) if address.ip_address else ""
    return Address(ip_address=ip, mac_address=address.mac_address)


def _same_mac(mac: str) -> str:
    return mac_text(packed_mac(mac))


@dataclass(frozen=True)
class AddressPool:
    """Free and registered addresses, in order."""

    free: tuple[Address, ...] = ()
    registered: tuple[Address, ...] = ()

    def add(
        self, addresses: Iterable[Address], subnets: Subnets, used: Mapping[str, str]
    ) -> "AddressPool":
        """Register addresses; those that no VM has become free.

        ``used`` maps the IP of every VM's address to its MAC. Raises BadMacError, BadIpError,
        NoMatchingSubnetError, DuplicateAddressError, AddressOfVmError or MacOfVmError.
        """
        ips = {known.ip_address for known in self.registered if known.ip_address}
        macs = {_same_mac(known.mac_address) for known in self.registered}
        owner = {_same_mac(mac): ip for ip, mac in used.items()}
        free, registered = list(self.free), list(self.registered)
        for address in map(normal, addresses):
            ip, mac = address.ip_address, _same_mac(address.mac_address)
            if ip:
                if subnets.matching(ip) is None:
                    raise NoMatchingSubnetError(ip=ip)
                if ip in ips:
                    raise DuplicateAddressError(what="IP", value=ip)
                if ip in used and _same_mac(used[ip]) != mac:
                    raise AddressOfVmError(ip=ip, mac=used[ip], added=address.mac_address)
                ips.add(ip)
            if mac in macs:
                raise DuplicateAddressError(what="MAC", value=address.mac_address)
            macs.add(mac)
            if mac not in owner:
                free.append(address)
            elif owner[mac] != ip:
                raise MacOfVmError(mac=address.mac_address)
            registered.append(address)
        return AddressPool(tuple(free), tuple(registered))

    def remove(self, addresses: Iterable[Address], used: Collection[str]) -> "AddressPool":
        """Take addresses out, each named by IP or MAC or both; they have to be free.

        Raises AddressInUseError or NotInPoolError.
        """
        addresses = list(addresses)
        ips = {str(parse_ip(a.ip_address)) for a in addresses if a.ip_address}
        macs = {_same_mac(a.mac_address) for a in addresses if a.mac_address}
        for where in ("free", "registered"):
            for ip in sorted(ips):
                if ip in used:
                    raise AddressInUseError(ip=ip, where=where)
        return AddressPool(
            _without(self.free, ips, macs, "not in free pool"),
            _without(self.registered, ips, macs, "not registered"),
        )

    def limit_free(self, maximum: Mapping[str, int], subnets: Subnets) -> "AddressPool":
        """Keep the first so many free addresses of each subnet id; the key "" is for them all."""
        count: Counter[str] = Counter()
        excess = set()
        for address in self.free:
            subnet = subnets.matching(address.ip_address)
            name = subnet.id if subnet else ""
            count[name] += 1
            bounds = [maximum[key] for key in {name, ""} if key in maximum]
            if bounds and count[name] > min(bounds):
                excess.add(address.mac_address)
        return AddressPool(
            tuple(a for a in self.free if a.mac_address not in excess),
            tuple(a for a in self.registered if a.mac_address not in excess),
        )

    def take(self, subnets: Subnets, subnet: Subnet, ip: str = "") -> tuple[Address, "AddressPool"]:
        """The first free address of the subnet, or the free address ``ip`` if that is in it.

        Raises PoolEmptyError, NoFreeAddressError or AddressNotFreeError.
        """
        self.check_not_empty()
        wanted = str(parse_ip(ip)) if ip and ip != "0.0.0.0" else ""
        for index, address in enumerate(self.free):
            if wanted and address.ip_address != wanted:
                continue
            if subnets.contains(subnet, address.ip_address):
                rest = self.free[:index] + self.free[index + 1 :]
                return address, AddressPool(rest, self.registered)
        if wanted:
            raise AddressNotFreeError(ip=wanted)
        raise NoFreeAddressError(subnet=subnet.id)

    def check_not_empty(self) -> None:
        """Raises PoolEmptyError, which comes before any question of subnets."""
        if not self.free:
            raise PoolEmptyError

    def release(self, address: Address) -> "AddressPool":
        """Give an address back: it becomes the last free one; once only."""
        if address in self.free:
            return self
        return AddressPool((*self.free, address), self.registered)

    def reconciled(self, used: Collection[Address]) -> "AddressPool":
        """The pool when exactly ``used`` are in use, as at a start after a crash: those are not
        free; every other registered one is, the lost ones behind the others."""
        kept = [a for a in self.free if a not in used]
        lost = [a for a in self.registered if a not in used and a not in kept]
        return AddressPool((*kept, *lost), self.registered)

    def register(self, address: Address) -> "AddressPool":
        """Add an address that a VM brings with it; it does not become free."""
        return AddressPool(self.free, (*self.registered, address))

    def unregister(self, address: Address) -> "AddressPool":
        """Forget an address that leaves with its VM. Raises NotRegisteredError."""
        if address not in self.registered:
            raise NotRegisteredError(address=f"{address.ip_address};{address.mac_address}")
        return AddressPool(self.free, tuple(a for a in self.registered if a != address))

    def free_counts(self, subnets: Subnets) -> dict[str, int]:
        """Free addresses with an IP by subnet id, 0 included, the pseudo subnet excluded.

        Raises NoMatchingSubnetError for a free address that is in no subnet.
        """
        counts = {subnet.id: 0 for subnet in subnets.reported()}
        for address in self.free:
            if not address.ip_address:
                continue
            subnet = subnets.matching(address.ip_address)
            if subnet is None:
                raise NoMatchingSubnetError(ip=address.ip_address)
            if subnet.id != PSEUDO:
                counts[subnet.id] += 1
        return counts


def _without(
    addresses: Sequence[Address], ips: Collection[str], macs: Collection[str], where: str
) -> tuple[Address, ...]:
    ips, macs = set(ips), set(macs)
    kept = []
    for address in addresses:
        mac = _same_mac(address.mac_address)
        if address.ip_address in ips:
            ips.discard(address.ip_address)
            macs.discard(mac)
        elif mac in macs:
            macs.discard(mac)
        else:
            kept.append(address)
    if ips:
        raise NotInPoolError(what="IPs", values=", ".join(sorted(ips)), where=where)
    if macs:
        raise NotInPoolError(what="MACs", values=", ".join(sorted(macs)), where=where)
    return tuple(kept)
