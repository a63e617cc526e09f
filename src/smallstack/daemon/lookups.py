"""Names of images' hosts, looked up in threads of their own.

A look-up takes as long as name servers like, and nothing ends it before: in the loop's own threads,
which all file work shares, a few names that nobody answers for would bring the agent to a stop.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from smallstack.srpc.slots import Slots
from smallstack.telemetry.errors import SmallStackError

LOOK_UPS: Final = 16
"""At a time."""
USER_LOOK_UPS: Final = 4
LOOK_UP_SECONDS: Final = 20.0
"""How long one is waited for, its turn included; it holds its thread until it ends."""
Addresses = list[ResolveResult]


class NameLookUpError(SmallStackError):
    """{host}: {detail}"""


class LookUps:
    """All look-ups of an agent."""

    def __init__(self, total: int = LOOK_UPS, each: int = USER_LOOK_UPS) -> None:
        self._slots = Slots(total, each)

    def of(self, user: str) -> AbstractResolver:
        """What one user's transfers look names up with. It raises OSError,
        UnicodeError for what is no name, and NameLookUpError."""
        return _Resolver(self._slots, user)


class _Resolver(AbstractResolver):
    def __init__(self, slots: Slots, user: str) -> None:
        self._slots = slots
        self._user = user

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> Addresses:
        waited = f"after {LOOK_UP_SECONDS:g} s"
        detail = f"too many names are being looked up, {waited} still: try again later"
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                await self._slots.take(self._user)
                detail = f"no name server has told its address {waited}"
                return await self._look_up(lambda: _look_up(host, port, family))
        except TimeoutError:
            raise NameLookUpError(host=host, detail=detail) from None

    async def _look_up(self, work: Callable[[], Addresses]) -> Addresses:
        """What ``work`` returns in a thread; the slot is given back at the end of that."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Addresses] = loop.create_future()

        def ended(addresses: Addresses, error: Exception | None) -> None:
            self._slots.give(self._user)
            if found.done():  # nobody waits any more
                return
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)

        def run() -> None:
            addresses: Addresses = []
            error = None
            try:
                addresses = work()
            except (OSError, UnicodeError) as caught:
                error = caught
            with suppress(RuntimeError):  # the agent has ended meanwhile
                loop.call_soon_threadsafe(ended, addresses, error)

        # A daemon: the agent's end does not wait for it.
        try:
            threading.Thread(target=run, name="look-up", daemon=True).start()
        except RuntimeError as error:  # no more threads are to be had
            self._slots.give(self._user)
            raise OSError(errno.EAGAIN, str(error)) from error
        return await found

    async def close(self) -> None:
        """Nothing is held."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> Addresses:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=_text(address),
            port=port,
            family=kind,
            proto=proto,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, proto, _, address in found
    ]


def _text(address: tuple[object, ...]) -> str:
    """With the interface, by number, of an address that needs one."""
    return f"{address[0]}%{address[3]}" if len(address) > 3 and address[3] else str(address[0])
