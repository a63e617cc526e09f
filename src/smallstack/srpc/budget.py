"""How many bytes of unfinished large messages one user may have in a server's memory.

A message is read whole before it is decoded, and may have many megabytes; a user may have thousands
of connections. So a large one waits, unread, until those before it are done. One alone is always
let in, whatever its size (its own limit is the codec's).
"""

import asyncio
from typing import Final

LARGE: Final = 128 * 1024
"""Bytes above which a message counts."""
USER_BYTES: Final = 128 << 20


class Budget:
    """Of one user; ``used`` bytes are taken."""

    __slots__ = ("_waiting", "limit", "used")

    def __init__(self, limit: int = USER_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, size: int) -> None:
        """Wait until there is room for ``size`` bytes, in the order of asking."""
        while self.used and self.used + size > self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                self._waiting.remove(turn)
        self.used += size

    def grow(self, held: int, size: int) -> bool:
        """Take ``size`` more for what holds ``held``; False when there is no room beside others."""
        if self.used > held and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
