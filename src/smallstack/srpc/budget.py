"""How many bytes of unfinished large messages one user may have in a server's memory.

A message is read whole before it is decoded, and may have many megabytes; a user may have thousands
of connections. So a large one waits, unread, until those before it are done. One alone is always
let in, whatever its size (its own limit is the codec's).

They are let in in the order of asking, but for what there is room for beside the first that waits:
were it strict, one of 100 MB would keep all that a user has to say waiting for a slow one before
it; were there no order, what is smaller would keep it waiting for ever. So others go past the first
until they are as many bytes as the whole budget; from then on they wait behind it.
"""

import asyncio
from typing import Final

LARGE: Final = 128 * 1024
"""Bytes above which a message counts."""
USER_BYTES: Final = 128 << 20


class Budget:
    """Of one user; ``used`` bytes are taken."""

    __slots__ = ("_passed", "_waiting", "limit", "used")

    def __init__(self, limit: int = USER_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        """What each asks for, in the order of asking."""
        self._passed = 0
        """Bytes that were let in past the first of them."""

    async def take(self, size: int) -> None:
        """Wait until there is room for ``size`` bytes, see the module."""
        if self._enters(size, first=not self._waiting):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = size
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                del self._waiting[turn]
                self._let_in()
            else:  # its turn came at the same moment
                self.give(size)
            raise

    def grow(self, held: int, size: int) -> bool:
        """Take ``size`` more for what holds ``held``; False when there is no room beside others."""
        if self.used > held and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
        self._let_in()

    def _let_in(self) -> None:
        first = True
        for turn, size in list(self._waiting.items()):
            if turn.done():  # it has given up, and will say so
                continue
            if self._enters(size, first=first):
                del self._waiting[turn]
                turn.set_result(None)
            else:
                first = False

    def _enters(self, size: int, *, first: bool) -> bool:
        """Take it if there is room for one that is the first, or may go past it."""
        if self.used and self.used + size > self.limit:
            return False
        if not first and self._passed + size > self.limit:
            return False
        self._passed = 0 if first else self._passed + size
        self.used += size
        return True
