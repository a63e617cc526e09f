"""Guests for network tests: an interface in a namespace of its own, at a port of the bridge.

The port has the name that a tap of that address would have, so the guard treats it as one, while
any real DHCP or HTTP client can run inside.
"""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from smallstack.network.bridge import Bridge
from smallstack.network.namespace import create_namespace, in_namespace, in_thread
from smallstack.network.tap import tap_name
from smallstack.proto.vm import Subnet

T = TypeVar("T")
GATEWAY = "198.51.100.1"
SUBNET = Subnet(
    id="test",
    ip_gateway=GATEWAY,
    ip_mask="255.255.255.0",
    domain_name="example.org",
    domain_name_servers=["198.51.100.1", "203.0.113.53"],
)
_libc = ctypes.CDLL(None, use_errno=True)


def mac_for_ip(ip: str) -> str:
    """The custom MAC of an address: 52:54 and its octets."""
    return (b"\x52\x54" + IPv4Address(ip).packed).hex(":")


@contextmanager
def private_namespace() -> Iterator[None]:
    """Put the calling thread, and every thread it starts, into a network namespace of its own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.unshare(0x40000000) == 0, os.strerror(ctypes.get_errno())
        in_thread(_up)
        yield
    finally:
        assert _libc.setns(home, 0x40000000) == 0
        os.close(home)


@dataclass
class Guest:
    """A namespace with ``eth0`` whose other end, ``port``, is on the bridge."""

    namespace: int
    ip: str
    mac: str
    port: str

    def inside(self, work: Callable[[], T]) -> T:
        """Run blocking ``work`` in the guest."""
        return in_namespace(self.namespace, work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking ``work`` in the guest while the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(None, self.inside, work)

    async def program(
        self, *command: str | Path, timeout: float = 60, cwd: Path | None = None
    ) -> tuple[int, str]:
        """Run a program in the guest: its exit code and all it said."""
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--net=/proc/self/fd/{self.namespace}",
            "--",
            *map(str, command),
            pass_fds=(self.namespace,),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(timeout):
                said, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return process.returncode or 0, said.decode(errors="replace")

    def set_address(self, ip: str | None = None, gateway: str = GATEWAY) -> None:
        """Configure eth0 by hand, as after DHCP."""
        self.inside(partial(_configure, ip or self.ip, gateway))

    def set_mac(self, mac: str) -> None:
        """Take another MAC."""
        self.inside(partial(_set_mac, mac))

    def packet_socket(self) -> socket.socket:
        """A raw socket on eth0: whole Ethernet frames."""
        return self.inside(_packet_socket)

    def close(self) -> None:
        """Take the guest away."""
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1


def plug(bridge: Bridge, ip: str, mac: str | None = None, port: str | None = None) -> Guest:
    """Connect a guest to the bridge; by default with the custom MAC and the tap's name."""
    mac = mac or mac_for_ip(ip)
    port = port or tap_name(ip)
    namespace = create_namespace()

    def connect() -> None:
        with IPRoute() as route:
            peer = {"ifname": "eth0", "address": mac, "net_ns_fd": namespace}
            route.link("add", ifname=port, kind="veth", peer=peer)
            route.link("set", index=socket.if_nametoindex(port), master=bridge.index, state="up")

    in_thread(connect)
    in_namespace(namespace, _up)
    return Guest(namespace, ip, mac, port)


def _up() -> None:
    with IPRoute() as route:
        for index, _name in socket.if_nameindex():
            route.link("set", index=index, state="up")


def _configure(ip: str, gateway: str) -> None:
    with IPRoute() as route:
        index = socket.if_nametoindex("eth0")
        route.flush_addr(index=index)
        route.addr("add", index=index, address=ip, prefixlen=24)
        route.route("replace", dst="default", gateway=gateway)


def _set_mac(mac: str) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex("eth0"), address=mac)


def _packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.ntohs(3))
    made.bind(("eth0", 3))
    made.settimeout(10)
    return made


def addresses(guest: Guest) -> list[str]:
    """eth0's IPv4 addresses with their prefix lengths."""
    return guest.inside(addresses_here)


def addresses_here() -> list[str]:
    """The same, for a thread that is in the guest."""
    with IPRoute() as route:
        index = socket.if_nametoindex("eth0")
        found: list[Any] = list(route.get_addr(family=socket.AF_INET, index=index))
    return [f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}" for a in found]


def settled(work: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether ``work`` comes true; for what the kernel does in its own time, on no event."""
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        if work():
            return True
        pause.wait(0.01)
    return False
