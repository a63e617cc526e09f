"""Finds what holds the event loop: more than 5 ms of CPU time at a stretch.

CPU time of the loop's thread, not wall time, is what counts: beside emulated guests a thread may
wait long for a processor through no fault of its own.

`LoopWatchdog` is a thread for daemons, for any loop. Every `PERIOD` it reads the CPU clock of the
loop's thread and, if the loop has run at all, asks it for a sign (a callback that notes the clock).
CPU time spent between the asking and the sign was spent without returning to the queue::

    loop    │ short │      idle      │ long ─────────────────────│ sign │
    thread          ▲ nothing new            ▲ asks      ▲ over the limit: takes a stack
                                              └── CPU of the stretch ──┘

So a stretch of 5 ms + PERIOD is always seen, a shorter one by luck. `watch_callbacks` measures
every single callback instead, for tests in asyncio's own loop.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

LIMIT_NS: Final = 5_000_000
PERIOD: Final = 0.01
"""Seconds between two looks."""
_LOG_INTERVAL: Final = 10.0

_log = logging.getLogger("smallstack.daemon")


class Stretch(NamedTuple):
    """One time the loop was held: CPU nanoseconds, and where (innermost frames first)."""

    cpu_ns: int
    where: str


class LoopWatchdog:
    """Watches the running loop from a thread of its own. Use as a context manager in the loop."""

    def __init__(
        self,
        report: Callable[[Stretch], None] | None = None,
        limit_ns: int = LIMIT_NS,
        period: float = PERIOD,
    ) -> None:
        """``report`` is called in the watchdog's thread for each stretch."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread_id)
        self._report = report
        self._limit = limit_ns
        self._period = period
        self._stop = threading.Event()
        self._sign: int | None = None
        self._last_log = -_LOG_INTERVAL
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        self.stretches = 0
        """How many there were."""

    def __enter__(self) -> "LoopWatchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _cpu(self) -> int:
        return time.clock_gettime_ns(self._clock)

    def _give_sign(self) -> None:
        self._sign = self._cpu()

    def _watch(self) -> None:
        seen = self._cpu()
        while not self._stop.wait(self._period):
            now = self._cpu()
            if now == seen:
                continue
            self._sign = None
            try:
                self._loop.call_soon_threadsafe(self._give_sign)
            except RuntimeError:
                return  # the loop is closed
            where = ""
            asked = self._cpu()
            while (sign := self._signed()) is None and not self._stop.wait(0.001):
                if not where and self._cpu() - asked > self._limit:
                    where = self._stack()
            if sign is not None and sign - asked > self._limit:
                self._tell(Stretch(sign - asked, where))
            seen = self._cpu()

    def _signed(self) -> int | None:
        return self._sign

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return ""
        frames = reversed(traceback.extract_stack(frame, limit=None)[-4:])
        return " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames)

    def _tell(self, stretch: Stretch) -> None:
        self.stretches += 1
        if self._report is not None:
            self._report(stretch)
        now = time.monotonic()
        if now - self._last_log >= _LOG_INTERVAL:
            self._last_log = now
            _log.warning(
                "the event loop was held for %.1f ms of CPU time: %s",
                stretch.cpu_ns / 1e6,
                stretch.where or "(over before it could be seen where)",
            )


@contextlib.contextmanager
def watch_callbacks(limit_ns: int = LIMIT_NS) -> Iterator[list[Stretch]]:
    """Every callback of asyncio's own loops that takes longer, measured exactly; for tests.

    uvloop's callbacks are not seen.
    """
    found: list[Stretch] = []
    handle: Any = asyncio.Handle
    run = handle._run

    def timed(self: Any) -> None:
        start = time.thread_time_ns()
        try:
            run(self)
        finally:
            spent = time.thread_time_ns() - start
            if spent > limit_ns:
                found.append(Stretch(spent, _whose(self)))

    handle._run = timed
    try:
        yield found
    finally:
        handle._run = run


def _whose(handle: Any) -> str:
    """What a handle ran: its task's coroutine, else the callback as asyncio shows it."""
    for held in gc.get_referents(handle._callback):
        if isinstance(held, asyncio.Task):
            return repr(held.get_coro())
    return repr(handle)
