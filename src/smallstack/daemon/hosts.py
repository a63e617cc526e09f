"""Which servers a daemon may be told to fetch from, by their names and by where these lead.

Whoever may have a daemon fetch a URL acts with the daemon's place in the network. Unless a host is
named, none has an address of the machine itself, a link-local one or another metadata service's,
which hands out a machine's own secrets to whoever asks.
"""

import ipaddress
import socket
from dataclasses import dataclass
from socket import AddressFamily
from typing import ClassVar, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from smallstack.daemon.lookups import NameLookUpError

_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    )
)
"""Metadata services with other addresses: EC2's, Azure's, Alibaba's, Oracle's."""


@dataclass(frozen=True)
class HostPolicy:
    """What an operator allows. ``hosts``: names, ``*.name`` for all below, ``*`` for any."""

    option: ClassVar[str] = "--import-hosts"
    """The setting, for errors."""
    hosts: tuple[str, ...] = ("*",)

    def why_not(self, host: str) -> str:
        """What stands against a host, "" for nothing; where its name leads is seen later."""
        if not self._named(host) and "*" not in self.hosts:
            return f"{host} is not allowed, see {self.option}"
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return ""
        return "" if self.admits(host, str(address)) else self.wrong_address

    @property
    def wrong_address(self) -> str:
        """What is told of a host that `admits` none of the addresses of."""
        return f"its address is this machine's own or a link-local one, see {self.option}"

    def admits(self, host: str, address: str) -> bool:
        """Whether a host may be had at this address: see the module; any, if it is named."""
        found = ipaddress.ip_address(address.partition("%")[0])
        inside = getattr(found, "ipv4_mapped", None) or found
        return self._named(host) or not (
            inside.is_link_local
            or inside.is_loopback
            or inside.is_unspecified
            or inside.is_multicast
            or inside in _METADATA
            or _is_own(inside)
        )

    def _named(self, host: str) -> bool:
        host = host.lower().rstrip(".")
        for pattern in self.hosts:
            if pattern.startswith("*."):
                if host.endswith(pattern[1:].lower()):
                    return True
            elif pattern != "*" and host == pattern.lower():
                return True
        return False


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is this machine's: only there the kernel would send from where it sends to.

    Nothing is sent. Asked anew each time, for addresses come and go.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # any port
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False  # no way there at all


class Allowed(AbstractResolver):
    """Looks names up, and leaves addresses out that are not allowed."""

    def __init__(self, policy: HostPolicy, names: AbstractResolver) -> None:
        self._policy = policy
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError, UnicodeError, NameLookUpError."""
        found = await self._names.resolve(host, port, family)
        allowed = [entry for entry in found if self._policy.admits(host, entry["host"])]
        if not allowed:
            raise NameLookUpError(host=host, detail=self._policy.wrong_address)
        return allowed

    async def close(self) -> None:
        """Nothing is held."""
