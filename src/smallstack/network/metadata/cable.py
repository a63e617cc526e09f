"""The metadata service's place on a bridge: a namespace of its own at the end of a cable.

::

    agent's namespace                 the service's namespace (no name, held by a descriptor)
    bridge ── <bridge>-ll ═════════ eth0  169.254.169.254/32, a route per subnet,
                                          a fixed neighbour per VM; sockets on :80 and :control

The host's own port 80 stays free, the host need not be in the VMs' subnets, and the kernel removes
all of it with the process. The cable's MAC is derived from the bridge's name, so that a restarted
agent is found under the same one, and it is nailed to its port: no guest can draw the service's
traffic to itself by sending from that MAC.
"""

import asyncio
import errno
import hashlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from smallstack.network.bridge import Bridge
from smallstack.network.errors import MetadataError, NetworkError
from smallstack.network.guard import METADATA_ADDRESS
from smallstack.network.macs import mac_text
from smallstack.network.names import service_name
from smallstack.network.namespace import create_namespace
from smallstack.network.netlink import NO_IPV6, Netlink, Sockets, route_error
from smallstack.telemetry.errors import describe

HTTP_PORT = 80
_BACKLOG = 128
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NTF_MASTER, _NTF_STICKY = 0x04, 0x40


def service_mac(bridge: str) -> str:
    """The MAC of the metadata service on a bridge: locally administered, fixed by the name."""
    digest = hashlib.blake2b(bridge.encode(), digest_size=5, person=b"metadata").digest()
    return mac_text(b"\x06" + digest)


@dataclass
class Cable:
    """A namespace that is connected to a bridge, with its listening sockets."""

    bridge: Bridge
    mac: str
    netlink: Netlink
    """Netlink sockets inside the namespace."""
    http: socket.socket
    control: socket.socket | None
    index: int
    """eth0's, inside."""
    routes: set[IPv4Network]

    @classmethod
    async def connect(cls, outside: Netlink, bridge: Bridge, control_port: int | None) -> "Cable":
        """Make namespace, cable and sockets. Raises MetadataError or NoPrivilegeError."""
        loop = asyncio.get_running_loop()
        descriptor = await loop.run_in_executor(None, create_namespace)
        mac = service_mac(bridge.name)
        inside: Netlink | None = None
        try:
            inside = await Netlink.open(descriptor)
            await outside.run(lambda sockets: _plug(sockets.route, bridge, mac, descriptor))
            index = await inside.run(lambda sockets: _settle(sockets.route))
            http = await inside.run(lambda _: _listen(HTTP_PORT), socket.socket.close)
            try:
                control = None
                if control_port is not None:
                    port = control_port
                    control = await inside.run(lambda _: _listen(port), socket.socket.close)
            except BaseException:
                http.close()
                raise
        except (OSError, NetworkError) as error:
            if inside is not None:
                await inside.close()
            raise MetadataError(bridge=bridge.name, detail=describe(error)) from error
        finally:
            os.close(descriptor)
        return cls(bridge, mac, inside, http, control, index, set())

    async def close(self) -> None:
        """Close the sockets; namespace and cable go with the last of them, within some 20 ms."""
        self.http.close()
        if self.control is not None:
            self.control.close()
        await self.netlink.close()

    async def set_routes(self, networks: Iterable[IPv4Network]) -> None:
        """Route exactly these networks over the cable. Raises NetlinkError."""
        wanted = set(networks)

        def work(sockets: Sockets) -> None:
            for network in self.routes - wanted:
                _route(sockets.route, "del", network, self.index)
            for network in wanted - self.routes:
                _route(sockets.route, "replace", network, self.index)

        await self.netlink.run(work)
        self.routes = wanted

    async def set_neighbour(self, ip: str, mac: str) -> None:
        """Fix the MAC of a VM, so that no ARP is needed or believed. Raises NetlinkError."""

        def work(sockets: Sockets) -> None:
            try:
                sockets.route.neigh(
                    "replace", dst=ip, lladdr=mac, ifindex=self.index, state=_NUD_PERMANENT
                )
            except Exception as error:
                raise route_error(
                    error, f"make {ip} a neighbour of the metadata service"
                ) from error

        await self.netlink.run(work)

    async def remove_neighbour(self, ip: str) -> None:
        """Forget a VM's MAC; it need not be known. Raises NetlinkError."""

        def work(sockets: Sockets) -> None:
            try:
                sockets.route.neigh("del", dst=ip, ifindex=self.index)
            except Exception as error:
                if getattr(error, "code", 0) != errno.ENOENT:
                    raise route_error(error, f"forget the neighbour {ip}") from error

        await self.netlink.run(work)


def _plug(route: Any, bridge: Bridge, mac: str, namespace: int) -> None:
    """Make the cable, one end in the namespace, the other a port of the bridge."""
    name = service_name(bridge.name)
    try:
        for index in route.link_lookup(ifname=name):  # of an agent that was killed
            route.link("del", index=index)
        route.link(
            "add",
            ifname=name,
            kind="veth",
            mtu=bridge.mtu,
            address=mac_text(b"\xfe" + bytes.fromhex(mac.replace(":", ""))[1:]),
            peer={
                "ifname": "eth0",
                "address": mac,
                "mtu": bridge.mtu,
                "net_ns_fd": namespace,
            },
        )
        index = socket.if_nametoindex(name)
        route.link("set", index=index, master=bridge.index, state="up", IFLA_AF_SPEC=NO_IPV6)
        route.fdb(
            "add",
            ifindex=index,
            lladdr=mac,
            flags=_NTF_MASTER | _NTF_STICKY,
            state=_NUD_NOARP,
        )
    except Exception as error:
        raise route_error(error, f"connect {name} to {bridge.name}") from error


def _settle(route: Any) -> int:
    index = socket.if_nametoindex("eth0")
    try:
        route.addr("add", index=index, address=str(METADATA_ADDRESS), prefixlen=32)
        route.link("set", index=index, state="up", IFLA_AF_SPEC=NO_IPV6)
    except Exception as error:
        raise route_error(error, f"give eth0 the address {METADATA_ADDRESS}") from error
    return index


def _route(route: Any, command: str, network: IPv4Network, index: int) -> None:
    try:
        route.route(command, dst=str(network), oif=index, scope=253)  # RT_SCOPE_LINK
    except Exception as error:
        if command == "del" and getattr(error, "code", 0) == errno.ESRCH:
            return
        raise route_error(error, f"route {network} to the metadata service") from error


def _listen(port: int) -> socket.socket:
    made = socket.socket(
        socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(METADATA_ADDRESS), port))
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
