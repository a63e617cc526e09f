"""Waits that end after a while, any number of them under one timer of the loop.

A timer for each wait would be made and cancelled for every call. All waits here last equally long,
so the one that began first is the next to end: one timer, set for that one, will do::

    begin ──► waits, in order of beginning ──► end (in time, the usual case)
                 │ the timer looks at the first
                 └──► over: TimeoutError into its future, the next
"""

import asyncio
from typing import Final

SLOWEST: Final = 16 * 1024
"""Bytes per second that a peer must send of a value or block, once its first wait is over."""

Wait = asyncio.Future[None]


class Patience:
    """For how long to wait for a peer that is in the middle of something. Belongs to one loop."""

    __slots__ = ("_loop", "_timer", "_waits", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waits: dict[Wait, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: Wait) -> bool:
        """Whether the future was done in time; when not, it has failed with TimeoutError."""
        now = self._loop.time()
        self._waits[future] = now
        if self._timer is None:
            self._timer = self._loop.call_at(now + self.seconds, self._look)
        try:
            await future
        except TimeoutError:
            return False
        finally:
            self._waits.pop(future, None)
        return True

    def is_over(self, begun: float, size: int) -> bool:
        """Whether what began then, by the loop's clock, came too slowly: ``size`` bytes by now."""
        return self._loop.time() - begun > self.seconds + size / SLOWEST

    def _look(self) -> None:
        """End what is over, and look again when the next one would be."""
        self._timer = None
        latest = self._loop.time() - self.seconds
        for future, begun in list(self._waits.items()):
            if begun > latest:
                self._timer = self._loop.call_at(begun + self.seconds, self._look)
                return
            del self._waits[future]
            if not future.done():
                future.set_exception(TimeoutError())
