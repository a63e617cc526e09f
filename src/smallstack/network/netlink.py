"""The kernel's configuration sockets, in a thread of their own.

Netlink calls take the kernel's RTNL lock and wait for whoever holds it (taking a tap away holds
it for 16 ms), so they are kept off the event loop: one worker thread per `Netlink`, one route
socket, one nftables socket, both of the network namespace in which `open` was called.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError as RouteError  # type: ignore[import-untyped]

from smallstack.network import nfnetlink
from smallstack.network.errors import NetlinkError, NoPrivilegeError
from smallstack.network.namespace import enter_namespace
from smallstack.telemetry.errors import describe

T = TypeVar("T")
NO_IPV6 = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
"""IFLA_AF_SPEC for a port that shall have no IPv6 address and so say nothing of its own."""


@dataclass
class Sockets:
    """What a function that runs on the worker thread gets."""

    route: Any
    """A pyroute2 IPRoute."""
    nft: nfnetlink.Socket


class Netlink:
    """A worker thread with netlink sockets. Close it with `close`."""

    def __init__(self, executor: ThreadPoolExecutor, sockets: Sockets) -> None:
        """Use `open`."""
        self._executor = executor
        self._sockets = sockets

    @classmethod
    async def open(cls, namespace: int | None = None) -> Self:
        """Open the sockets in the calling thread's network namespace, or in that of a descriptor,
        which may be closed afterwards. Raises NoPrivilegeError or OSError."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        try:
            sockets = await asyncio.wrap_future(executor.submit(_open, namespace))
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(executor, sockets)

    async def close(self) -> None:
        """Close the sockets and end the thread, after the work that is already queued."""
        await asyncio.wrap_future(self._executor.submit(_close, self._sockets))
        self._executor.shutdown(wait=False)

    async def run(
        self, work: Callable[[Sockets], T], discard: Callable[[T], object] | None = None
    ) -> T:
        """The result of ``work``, run on the worker thread.

        Work that has begun runs to its end even when the caller is cancelled; its result is then
        given to ``discard``, on the worker thread.
        """
        future: Future[T] = self._executor.submit(work, self._sockets)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.cancel() and discard is not None:
                future.add_done_callback(partial(_hand_over, self._executor, discard))
            raise


def route_error(error: Exception, action: str) -> NetlinkError | NoPrivilegeError:
    """The project's error for one of pyroute2's; ``action`` completes "cannot …"."""
    code = getattr(error, "code", 0)
    if code in {errno.EPERM, errno.EACCES}:
        return NoPrivilegeError(action=action)
    if isinstance(error, RouteError):
        return NetlinkError(action=action, detail=str(error.args[1] if error.args[1:] else error))
    return NetlinkError(action=action, detail=describe(error))


def interface_exists(name: str) -> bool:
    """Whether there is an interface of that name in the calling thread's network namespace."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def interface_mtu(name: str) -> int:
    """The MTU of an interface, by ioctl: a tenth of the cost of a netlink query."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = name.encode().ljust(40, b"\0")
        answer = fcntl.ioctl(control, 0x8921, request)  # SIOCGIFMTU
    return int.from_bytes(answer[16:20], "little")


def _open(namespace: int | None) -> Sockets:
    if namespace is not None:
        enter_namespace(namespace)  # the thread is ours and ends in `close`
    return Sockets(IPRoute(), nfnetlink.Socket())


def _close(sockets: Sockets) -> None:
    sockets.route.close()
    sockets.nft.close()


def _hand_over(executor: ThreadPoolExecutor, discard: Callable[[T], object], f: Future[T]) -> None:
    if f.cancelled() or f.exception() is not None:
        return
    try:
        executor.submit(discard, f.result())
    except RuntimeError:  # shut down already
        discard(f.result())
