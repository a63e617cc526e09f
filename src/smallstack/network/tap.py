"""Taps: the host's end of a guest's network interface, as a descriptor for QEMU.

A tap is named after the VM's address (``ss-c6336405`` is 198.51.100.5), so what is left over can
be found and told whose it was. It is not persistent: the kernel removes it, with its place in the
bridge, when the last descriptor is closed, that is with QEMU, or with the agent before QEMU got
it. Removing one takes the kernel 16 ms.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from smallstack.network.bridge import Bridge
from smallstack.network.errors import (
    BridgeMissingError,
    NoPrivilegeError,
    TapBusyError,
    TapError,
    TunMissingError,
)
from smallstack.network.macs import packed_mac
from smallstack.network.names import TAP_BY_IP, TAP_BY_MAC, TAP_PREFIXES
from smallstack.network.netlink import NO_IPV6, Netlink, Sockets, route_error

TUN_DEVICE = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100


@dataclass
class Tap:
    """A tap that is up and a port of its bridge. Whoever has it closes it: after QEMU inherited
    the descriptors, or when it is not needed after all. It has one for each of its queues."""

    name: str
    fd: int
    bridge: str
    mtu: int
    more_fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Close our descriptors, once; blocks for 16 ms if they were the last."""
        if self.fd >= 0:
            fds, self.fd, self.more_fds = (self.fd, *self.more_fds), -1, ()
            for fd in fds:
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def tap_name(ip: str, mac: str = "") -> str:
    """The name of the tap of a VM's address; of its MAC if it has no IPv4 address."""
    try:
        return TAP_BY_IP + IPv4Address(ip).packed.hex()
    except AddressValueError:
        return TAP_BY_MAC + packed_mac(mac).hex()


async def create_tap(
    netlink: Netlink, name: str, bridge: Bridge, mac: str | None = None, mtu: int | None = None
) -> Tap:
    """Make a tap, up, on the bridge, with the bridge's MTU unless told otherwise.

    ``mac`` is the guest's; the tap itself gets one that can never be the lowest of the bridge's
    ports, from which a bridge takes its own. Raises TapError, TapBusyError, BridgeMissingError,
    TunMissingError or NoPrivilegeError.
    """
    return await netlink.run(partial(open_tap, name=name, bridge=bridge, mac=mac, mtu=mtu), _close)


async def delete_tap(netlink: Netlink, name: str) -> bool:
    """Remove a leftover tap by name, even while a process holds it; False if there is none."""

    def work(sockets: Sockets) -> bool:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return False
        try:
            sockets.route.link("del", index=index)
        except Exception as error:
            if getattr(error, "code", 0) == errno.ENODEV:
                return False
            raise route_error(error, f"remove the tap {name}") from error
        return True

    return await netlink.run(work)


async def list_taps(netlink: Netlink) -> list[str]:
    """Names of all taps of ours in this network namespace."""

    def work(_sockets: Sockets) -> list[str]:
        return sorted(name for _index, name in socket.if_nameindex() if is_ours(name))

    return await netlink.run(work)


def is_ours(name: str) -> bool:
    """Whether an interface of that name is a tap of ours."""
    return name.startswith(TAP_PREFIXES)


def holders(name: str) -> Iterator[int]:
    """Processes of the calling thread's network namespace that hold the tap, from /proc; needs
    root to see other users' processes."""
    wanted = f"iff:\t{name}"
    namespace = Path("/proc/thread-self/ns/net").readlink()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            if (process / "ns" / "net").readlink() != namespace:
                continue
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if descriptor.readlink() != Path(TUN_DEVICE):
                        continue
                    info = process / "fdinfo" / descriptor.name
                    if wanted in info.read_text().splitlines():
                        yield int(process.name)
                        break


def tap_busy(name: str) -> TapBusyError:
    """The error that names who holds a tap."""
    pids = ", ".join(map(str, sorted(holders(name))))
    return TapBusyError(name=name, holder=f"process {pids}" if pids else "a process")


def open_tap(
    sockets: Sockets,
    name: str,
    bridge: Bridge,
    mac: str | None = None,
    mtu: int | None = None,
    queues: int = 1,
) -> Tap:
    """`create_tap`, from within the netlink thread."""
    mtu = mtu or bridge.current_mtu()
    several = queues > 1
    tap = Tap(name, _attach(name, several=several), bridge.name, mtu)
    try:
        for _ in range(1, queues):
            tap.more_fds += (_attach(name, several=several),)
        # A tap somebody made persistent must go with its last holder like any other.
        fcntl.ioctl(tap.fd, _TUNSETPERSIST, 0)
        _join(sockets.route, tap, bridge, mac)
    except BaseException:
        tap.close()
        raise
    return tap


def _attach(name: str, *, several: bool) -> int:
    """A descriptor of the tap: of one of ``several`` queues, or of the only one."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if several else 0)
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise TunMissingError(name=name, device=TUN_DEVICE) from None
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.ENXIO}:
            raise TunMissingError(name=name, device=TUN_DEVICE) from None
        raise NoPrivilegeError(action=f"make the tap {name}") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            raise tap_busy(name) from None
        if error.errno == errno.EPERM:
            raise NoPrivilegeError(action=f"make the tap {name}") from None
        raise TapError(name=name, bridge="-", detail=error.strerror) from error
    return fd


def _join(route: Any, tap: Tap, bridge: Bridge, mac: str | None) -> None:
    settings: dict[str, object] = {
        "index": socket.if_nametoindex(tap.name),
        "master": bridge.index,
        "mtu": tap.mtu,
        "state": "up",
        "IFLA_AF_SPEC": NO_IPV6,
    }
    if mac is not None:
        settings["address"] = (b"\xfe" + packed_mac(mac)[1:]).hex(":")
    try:
        route.link("set", **settings)
    except Exception as error:
        code = getattr(error, "code", 0)
        if code in {errno.ENODEV, errno.EINVAL} and not bridge.exists():
            raise BridgeMissingError(name=bridge.name) from None
        if code in {errno.EPERM, errno.EACCES}:
            raise NoPrivilegeError(action=f"put the tap {tap.name} on {bridge.name}") from None
        detail = str(error.args[1]) if error.args[1:] else str(error)
        raise TapError(name=tap.name, bridge=bridge.name, detail=detail) from error


def _close(tap: Tap) -> None:
    tap.close()
