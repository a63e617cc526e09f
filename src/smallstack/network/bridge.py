"""Bridges: the switch that taps, uplink and metadata service are ports of.

A bridge of the machine is used as it is. One that is missing is made only when asked for; then
it has a fixed MAC (so that a tap that comes or goes does not change it) and no forwarding delay.
"""

import logging
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

from smallstack.network.errors import (
    BridgeMissingError,
    NotABridgeError,
    NoUsableBridgeError,
)
from smallstack.network.names import TAP_PREFIXES, service_name
from smallstack.network.netlink import Netlink, Sockets, interface_mtu, route_error

_log = logging.getLogger("smallstack.network")

NAMED_PREFIX = "br@"
"""A bridge called ``br@<subnet>`` serves that subnet alone."""


@dataclass(frozen=True)
class Bridge:
    """A bridge as it was when looked at. ``uplinks`` are its ports other than taps of ours and
    the metadata service; ``vlan_id`` is that of an uplink that is a VLAN interface, else 0."""

    name: str
    index: int
    mtu: int
    vlan_id: int = 0
    uplinks: tuple[str, ...] = ()
    addresses: tuple[IPv4Interface, ...] = ()
    created: bool = False

    def current_mtu(self) -> int:
        """The MTU now, in bytes. Raises BridgeMissingError."""
        try:
            return interface_mtu(self.name)
        except OSError:
            raise BridgeMissingError(name=self.name) from None

    def exists(self) -> bool:
        """Whether the interface is still there."""
        try:
            return socket.if_nametoindex(self.name) == self.index
        except OSError:
            return False


async def ensure_bridge(
    netlink: Netlink, name: str, address: str | None = None, *, create: bool = False
) -> Bridge:
    """The bridge ``name``, up; made if it is missing and ``create`` says so.

    ``address`` (``198.51.100.1/24``) is added to it unless it has it. Raises BridgeMissingError,
    NotABridgeError, NoPrivilegeError or NetlinkError.
    """
    wanted = IPv4Interface(address) if address else None
    return await netlink.run(lambda sockets: _ensure(sockets.route, name, wanted, create))


async def delete_bridge(netlink: Netlink, name: str) -> None:
    """Remove the bridge if it is there. Raises NoPrivilegeError or NetlinkError."""

    def work(sockets: Sockets) -> None:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return
        try:
            sockets.route.link("del", index=index)
        except Exception as error:
            raise route_error(error, f"remove the bridge {name}") from error

    await netlink.run(work)


async def list_bridges(netlink: Netlink) -> list[Bridge]:
    """Every bridge of this network namespace, by name."""
    return await netlink.run(lambda sockets: _list(sockets.route))


def choose_bridge(
    subnet_id: str, vlan_id: int, bridges: Sequence[Bridge]
) -> tuple[Bridge, int | None]:
    """The bridge for a subnet, and the VLAN that the guest has to tag itself, if any.

    ``br@<subnet>`` first; else the bridge whose uplink carries the VLAN; else that of VLAN 0,
    where frames need the tag. Raises NoUsableBridgeError.
    """
    by_name = {bridge.name: bridge for bridge in bridges}
    own = by_name.get(NAMED_PREFIX + subnet_id)
    if own is not None:
        return own, None
    by_vlan = {b.vlan_id: b for b in reversed(bridges) if not b.name.startswith(NAMED_PREFIX)}
    if vlan_id in by_vlan:
        return by_vlan[vlan_id], None
    if 0 in by_vlan:
        return by_vlan[0], vlan_id
    known = ", ".join(sorted(by_name)) or "none"
    raise NoUsableBridgeError(subnet=subnet_id, vlan_id=vlan_id, known=known)


def _ensure(route: Any, name: str, address: IPv4Interface | None, create: bool) -> Bridge:
    made = False
    if not route.link_lookup(ifname=name):
        if not create:
            raise BridgeMissingError(name=name)
        try:
            route.link(
                "add",
                ifname=name,
                kind="bridge",
                address=(b"\x02" + os.urandom(5)).hex(":"),
                br_forward_delay=0,
                br_stp_state=0,
            )
        except Exception as error:
            raise route_error(error, f"make the bridge {name}") from error
        made = True
    try:
        return _settle(route, name, address, made)
    except BaseException:
        if made:
            route.link("del", ifname=name)
        raise


def _settle(route: Any, name: str, address: IPv4Interface | None, made: bool) -> Bridge:
    bridges = {bridge.name: bridge for bridge in _list(route)}
    if name not in bridges:
        link = next(iter(route.get_links(ifname=name)))
        raise NotABridgeError(name=name, kind=_kind(link) or "physical")
    bridge = bridges[name]
    addresses = bridge.addresses
    try:
        if address is not None and address not in addresses:
            route.addr(
                "add",
                index=bridge.index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                broadcast=str(address.network.broadcast_address),
            )
            addresses = (*addresses, address)
        route.link("set", index=bridge.index, state="up")
    except Exception as error:
        raise route_error(error, f"set the bridge {name} up") from error
    return Bridge(name, bridge.index, bridge.mtu, bridge.vlan_id, bridge.uplinks, addresses, made)


def _list(route: Any) -> list[Bridge]:
    links = list(route.get_links())
    addresses: dict[int, list[IPv4Interface]] = {}
    for entry in route.get_addr(family=socket.AF_INET):
        local = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        interface = IPv4Interface(f"{local}/{entry['prefixlen']}")
        addresses.setdefault(entry["index"], []).append(interface)
    found = []
    for link in links:
        if _kind(link) != "bridge":
            continue
        index, name = link["index"], link.get_attr("IFLA_IFNAME")
        ports = [p for p in links if p.get_attr("IFLA_MASTER") == index]
        _warn_of_delay(name, link)
        found.append(
            Bridge(
                name,
                index,
                link.get_attr("IFLA_MTU"),
                _vlan_of(ports),
                tuple(sorted(_uplinks(name, ports))),
                tuple(addresses.get(index, ())),
            )
        )
    return sorted(found, key=lambda bridge: bridge.name)


def _uplinks(bridge: str, ports: Iterable[Any]) -> Iterable[str]:
    for port in ports:
        name: str = port.get_attr("IFLA_IFNAME")
        if not name.startswith(TAP_PREFIXES) and name != service_name(bridge):
            yield name


def _vlan_of(ports: Iterable[Any]) -> int:
    for port in ports:
        if _kind(port) == "vlan":
            data = port.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
            return int(data.get_attr("IFLA_VLAN_ID"))
    return 0


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""


def _warn_of_delay(name: str, link: Any) -> None:
    data = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    if data and data.get_attr("IFLA_BR_STP_STATE") and data.get_attr("IFLA_BR_FORWARD_DELAY"):
        seconds = data.get_attr("IFLA_BR_FORWARD_DELAY") / 50  # two delays, in 1/100 s
        _log.warning(
            "bridge %s runs the spanning tree protocol: a new VM gets no DHCP for %.0f s; "
            "`ip link set %s type bridge forward_delay 0` ends that",
            name,
            seconds,
            name,
        )
