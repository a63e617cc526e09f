"""Slots that users share: so many in all, of one user fewer, so that others find some as well.

Who finds none waits. A slot that becomes free goes to the user whose turn is longest past, and of
that user to the call that waited longest: whoever asks a thousand times waits for themselves.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """``total`` of them, at most ``each`` for one user. Belongs to one loop."""

    __slots__ = ("_held", "_waiting", "each", "total", "used")

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self.used = 0
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        """By user, whose turn is next first. While a slot is free they have all of theirs."""

    async def take(self, user: str) -> None:
        """Wait for a slot; `give` it back."""
        if user not in self._waiting and self._may_have(user):
            self._count(user, 1)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, {})[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came at the same moment
                self.give(user)
            else:
                self._leave(user, turn)
            raise

    def give(self, user: str) -> None:
        """Give a slot back that was taken."""
        self._count(user, -1)
        for name, line in self._waiting.items():
            turn = next((turn for turn in line if not turn.done()), None)
            if turn is not None and self._may_have(name):
                self._leave(name, turn)
                if line:  # behind the others
                    self._waiting[name] = self._waiting.pop(name)
                self._count(name, 1)
                turn.set_result(None)
                return

    @asynccontextmanager
    async def hold(self, user: str) -> AsyncIterator[None]:
        """A slot, as long as the context is open."""
        await self.take(user)
        try:
            yield
        finally:
            self.give(user)

    def _leave(self, user: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting[user]
        del line[turn]
        if not line:
            del self._waiting[user]

    def _may_have(self, user: str) -> bool:
        return self.used < self.total and self._held[user] < self.each

    def _count(self, user: str, change: int) -> None:
        self.used += change
        self._held[user] += change
        if not self._held[user]:
            del self._held[user]
