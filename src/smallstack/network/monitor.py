"""Tells when the machine's interfaces change, by the kernel's own messages.

Format: rtnetlink(7), group RTMGRP_LINK. What comes and goes with VMs (our taps) is passed over.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from smallstack.network.names import TAP_PREFIXES
from smallstack.network.netlink import Netlink, Sockets
from smallstack.network.nfnetlink import attributes

_RTMGRP_LINK = 1
_HEADER = struct.Struct("=IHHII")
_NEW_LINK, _DEL_LINK = 16, 17
_IFINFO_SIZE = 16
_IFLA_IFNAME = 3


class LinkMonitor:
    """Calls back, on the event loop, after an interface that is not a tap of ours has come, gone
    or changed; once for a burst of changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        self._socket.bind((0, _RTMGRP_LINK))
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        matters = False
        for _ in range(64):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                matters = True  # messages were lost: anything may have changed
                continue
            matters = matters or any(map(_is_foreign, link_names(data)))
        if matters:
            self._changed()


async def until_operational(netlink: Netlink, name: str, seconds: float) -> bool:
    """Wait until an interface carries frames; False if it does not within ``seconds``.

    A bridge gets its carrier with its first port, but drops whatever is sent through it until a
    worker of the kernel has taken note, some ms later: the first DHCP reply would be lost.
    """
    changed = asyncio.Event()
    monitor = LinkMonitor(changed.set)

    def look(sockets: Sockets) -> bool:
        links = list(sockets.route.get_links(ifname=name))
        return bool(links) and links[0].get_attr("IFLA_OPERSTATE") == "UP"

    try:
        async with asyncio.timeout(seconds):
            while not await netlink.run(look):
                await changed.wait()
                changed.clear()
    except TimeoutError:
        return False
    finally:
        monitor.close()
    return True


def link_names(data: bytes) -> list[str]:
    """The names of the interfaces that a run of messages is about."""
    names = []
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            break
        if kind in {_NEW_LINK, _DEL_LINK}:
            body = data[at + _HEADER.size + _IFINFO_SIZE : at + size]
            found = attributes(body).get(_IFLA_IFNAME, [])
            names += [name.rstrip(b"\0").decode(errors="replace") for name in found]
        at += (size + 3) & ~3
    return names


def _is_foreign(name: str) -> bool:
    return not name.startswith(TAP_PREFIXES)
