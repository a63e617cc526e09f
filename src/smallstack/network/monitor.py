"""Tells when the machine's interfaces or addresses change, by the kernel's own messages.

Format: rtnetlink(7), groups RTMGRP_LINK and RTMGRP_IPV4_IFADDR. What comes and goes with VMs (our
taps) is passed over, but for their end.
"""

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smallstack.network.names import TAP_PREFIXES
from smallstack.network.netlink import Netlink, Sockets
from smallstack.network.nfnetlink import attributes

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR = 0x1, 0x10
_HEADER = struct.Struct("=IHHII")
_INTERFACE = struct.Struct("=BxHiII")
_NEW_LINK, _DEL_LINK = 16, 17
_NEW_ADDRESS, _DEL_ADDRESS = 20, 21
_IFLA_IFNAME, _IFLA_MASTER = 3, 10


class LinkChange(NamedTuple):
    """An interface as it is now: the index of its bridge, 0 for none and for one that is gone."""

    name: str
    master: int
    gone: bool = False


class LinkMonitor:
    """Calls back, on the event loop, with what has changed among the interfaces that are not taps
    of ours; with None when addresses have changed, or messages were lost and anything may have.

    ``tap_gone`` is called with the name of a tap of ours that was taken away.
    """

    def __init__(
        self,
        changed: Callable[[Sequence[LinkChange] | None], None],
        tap_gone: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._changed = changed
        self._tap_gone = tap_gone
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        changes: list[LinkChange] = []
        for _ in range(64):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._changed(None)
                return
            if is_about_addresses(data):
                self._changed(None)
                return
            for change in link_changes(data):
                if not change.name.startswith(TAP_PREFIXES):
                    changes.append(change)
                elif change.gone:
                    self._tap_gone(change.name)
        if changes:
            self._changed(changes)


async def until_operational(netlink: Netlink, name: str, seconds: float) -> bool:
    """Wait until an interface carries frames; False if it does not within ``seconds``.

    A bridge gets its carrier with its first port, but drops whatever is sent through it until a
    worker of the kernel has taken note, some ms later: the first DHCP reply would be lost.
    """
    event = asyncio.Event()
    monitor = LinkMonitor(lambda _changes: event.set())

    def look(sockets: Sockets) -> bool:
        links = list(sockets.route.get_links(ifname=name))
        return bool(links) and links[0].get_attr("IFLA_OPERSTATE") == "UP"

    try:
        async with asyncio.timeout(seconds):
            while not await netlink.run(look):
                await event.wait()
                event.clear()
    except TimeoutError:
        return False
    finally:
        monitor.close()
    return True


def is_about_addresses(data: bytes) -> bool:
    """Whether a run of messages begins with one about an address; they come one at a time."""
    return len(data) >= _HEADER.size and _HEADER.unpack_from(data)[1] in {
        _NEW_ADDRESS,
        _DEL_ADDRESS,
    }


def link_changes(data: bytes) -> list[LinkChange]:
    """What a run of messages says; those about bridge ports as such say nothing new."""
    changes = []
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + size]
        if size < _HEADER.size:
            break
        if kind in {_NEW_LINK, _DEL_LINK} and len(body) >= _INTERFACE.size and body[0] == 0:
            found = attributes(body[_INTERFACE.size :])
            master = int.from_bytes(found.get(_IFLA_MASTER, [b""])[0], sys.byteorder)
            for name in found.get(_IFLA_IFNAME, []):
                text = name.rstrip(b"\0").decode(errors="replace")
                gone = kind == _DEL_LINK
                changes.append(LinkChange(text, 0 if gone else master, gone))
        at += (size + 3) & ~3
    return changes
