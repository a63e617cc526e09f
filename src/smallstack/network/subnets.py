"""Subnets: which there are, which one a VM gets, which one an address is in. Pure; see book.py.

The rules and texts are upstream's, but for one: with a single ordinary subnet, a request that
names none gets it (upstream then asks for a subnet called ``hypervisor``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Protocol

from smallstack.network.errors import (
    BadIpError,
    BadSubnetError,
    ManySubnetsError,
    NoSubnetPermittedError,
    NoSubnetsError,
    ReservedSubnetError,
    SubnetAccessError,
    SubnetExistsError,
    SubnetMissingError,
)
from smallstack.proto.vm import Subnet

PSEUDO = "hypervisor"
"""The id of the subnet that upstream derives from its host's default route; never on the wire."""


class Caller(Protocol):
    """Who asks: an ``identity.Peer`` is one."""

    @property
    def username(self) -> str:
        """The name in the certificate."""

    @property
    def groups(self) -> frozenset[str]:
        """The groups in the certificate."""

    @property
    def have_method_access(self) -> bool:
        """Whether the call was granted by method powers."""


def network_of(subnet: Subnet) -> IPv4Network:
    """The network of a subnet. Raises BadSubnetError."""
    try:
        gateway, mask = IPv4Address(subnet.ip_gateway), IPv4Address(subnet.ip_mask)
    except AddressValueError as error:
        raise BadSubnetError(subnet=subnet.id, detail=str(error)) from None
    hosts = int(mask) ^ 0xFFFFFFFF
    if hosts & (hosts + 1):  # a mask is ones, then zeros
        raise BadSubnetError(subnet=subnet.id, detail=f"{mask} is not a network mask")
    return IPv4Network((gateway, 32 - hosts.bit_length()), strict=False)


def parse_ip(text: str) -> IPv4Address:
    """An IPv4 address, also one written as ``::ffff:1.2.3.4``. Raises BadIpError."""
    try:
        return IPv4Address(text.lower().removeprefix("::ffff:"))
    except AddressValueError:
        raise BadIpError(ip=text[:64]) from None


def is_permitted(subnet: Subnet, caller: Caller | None) -> bool:
    """Whether the caller may have VMs in the subnet; None is the agent itself."""
    if caller is None or caller.have_method_access:
        return True
    if not subnet.allowed_users and not subnet.allowed_groups:
        return True
    return caller.username in subnet.allowed_users or not caller.groups.isdisjoint(
        subnet.allowed_groups
    )


class Subnets:
    """The subnets of one Hypervisor, by id. Immutable: a change makes another one."""

    def __init__(self, subnets: Iterable[Subnet] = ()) -> None:
        """Raises BadSubnetError for one that cannot be: no id, no IPv4 network."""
        self._subnets: dict[str, Subnet] = {}
        self._networks: dict[str, IPv4Network] = {}
        for subnet in subnets:
            _check(subnet)
            self._subnets[subnet.id] = subnet
            self._networks[subnet.id] = network_of(subnet)

    def __len__(self) -> int:
        return len(self._subnets)

    def __iter__(self) -> Iterator[Subnet]:
        return iter(self._subnets.values())

    def get(self, subnet_id: str) -> Subnet | None:
        """The subnet of that id."""
        return self._subnets.get(subnet_id)

    def reported(self) -> list[Subnet]:
        """The subnets that others may know of, by id."""
        return [self._subnets[name] for name in sorted(self._subnets) if name != PSEUDO]

    def matching(self, ip: str) -> Subnet | None:
        """The subnet that an address is in; None for no address and for no subnet.

        Where subnets overlap, the longest mask counts. Raises BadIpError.
        """
        if not ip:
            return None
        address = parse_ip(ip)
        within = [name for name, network in self._networks.items() if address in network]
        if not within:
            return None
        return self._subnets[max(within, key=lambda name: self._networks[name].prefixlen)]

    def contains(self, subnet: Subnet, ip: str) -> bool:
        """Whether the address is in the network of ``subnet``, which is one of these."""
        return bool(ip) and parse_ip(ip) in self._networks[subnet.id]

    def choose(self, subnet_id: str, caller: Caller | None = None) -> Subnet:
        """The subnet that a request asks for, or the only one it can mean.

        Raises NoSubnetsError, SubnetMissingError, SubnetAccessError, ManySubnetsError or
        NoSubnetPermittedError.
        """
        if not self._subnets:
            raise NoSubnetsError
        if subnet_id:
            subnet = self._subnets.get(subnet_id)
            if subnet is None:
                raise SubnetMissingError(subnet=subnet_id)
            if not is_permitted(subnet, caller):
                raise SubnetAccessError(subnet=subnet_id)
            return subnet
        if set(self._subnets) == {PSEUDO}:
            return self._subnets[PSEUDO]
        permitted = [s for s in self.reported() if is_permitted(s, caller)]
        if len(permitted) > 1:
            raise ManySubnetsError
        if not permitted:
            raise NoSubnetPermittedError
        return permitted[0]

    def updated(
        self,
        add: Sequence[Subnet] = (),
        change: Sequence[Subnet] = (),
        delete: Sequence[str] = (),
    ) -> "Subnets":
        """These subnets with some added, changed and deleted; nothing is done by halves.

        Raises ReservedSubnetError, SubnetExistsError, SubnetMissingError or BadSubnetError.
        """
        named: Mapping[str, Sequence[str]] = {
            "add": [s.id for s in add],
            "change": [s.id for s in change],
            "delete": delete,
        }
        for action, names in named.items():
            if PSEUDO in names:
                raise ReservedSubnetError(action=action)
        found = dict(self._subnets)
        for subnet in add:
            if subnet.id in found:
                raise SubnetExistsError(subnet=subnet.id)
            found[subnet.id] = subnet
        for subnet in change:
            if subnet.id not in self._subnets:
                raise SubnetMissingError(subnet=subnet.id)
            found[subnet.id] = subnet
        for name in delete:
            if name not in self._subnets or found.pop(name, None) is None:
                raise SubnetMissingError(subnet=name)
        return Subnets(found.values())


def _check(subnet: Subnet) -> None:
    if not subnet.id:
        raise BadSubnetError(subnet="", detail="it has no id")
    network_of(subnet)
    for server in subnet.domain_name_servers:
        try:
            IPv4Address(server)
        except AddressValueError as error:
            raise BadSubnetError(subnet=subnet.id, detail=f"name server: {error}") from None
