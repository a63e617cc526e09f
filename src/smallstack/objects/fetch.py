"""Gets objects from a peer into a store: the next request is made while the last one comes.

The loop reads, or waits while a thread does; one thread checks and stores, another what is large.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from smallstack.objects.errors import FetchError
from smallstack.objects.index import Index
from smallstack.objects.intake import Intake, Taken
from smallstack.objects.packs import Packs
from smallstack.objects.source import (
    FIRST_REQUEST,
    REQUEST,
    ObjectSource,
    ObjectStream,
    Reader,
    check_sizes,
)
from smallstack.objects.store import ObjectStore, Stored
from smallstack.outlast import outlast
from smallstack.telemetry.errors import describe

BATCH: Final = 32 << 20
"""Bytes that wait to be stored before no more are read; a fetch holds twice this: others are being
stored. By 32 MiB a Debian image came in 0.73 s, by 16 in 0.76, by 8 in 0.81."""
LEAST_BATCH: Final = 4 << 20
"""Where many fetches share `BATCH`."""
AHEAD: Final = 64 << 20
"""Bytes that are still to come of one request when the next one is made."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where objects enter; see `Intake`."""

    store: ObjectStore
    index: Index
    packs: Packs | None
    pack_up_to: int


class Times(NamedTuple):
    """How long a peer may send next to nothing, and how long it may take to answer; seconds."""

    stall_seconds: float
    answer_seconds: float


class Fetch:
    """One fetch; ``publish`` waits for what is being stored and takes it over, to its end."""

    def __init__(
        self,
        entry: Entry,
        source: ObjectSource,
        times: Times,
        publish: Callable[[Awaitable[Sequence[Stored]]], Coroutine[Any, Any, None]],
        batch: int = BATCH,
    ) -> None:
        """``batch``: bytes that may wait to be stored."""
        self._entry = entry
        self._source = source
        self._times = times
        self._publish = publish
        self._batch = batch

    async def run(self, order: Sequence[tuple[bytes, int]]) -> None:
        """Fetch objects (digest, size), in this order.

        Raises ObjectMissingError, ObjectCorruptError, ObjectSizeError, FetchError, StoreSpaceError
        or StoreError; what came whole is kept.
        """
        source, into = self._source, self._entry
        calls = [_Call(source, part, self._times.answer_seconds) for part in _requests(order)]
        # One for all requests: large objects of the first are checked while the next ones come.
        intake = Intake(into.store, into.index, order, source.name, into.packs, into.pack_up_to)
        try:
            for number, call in enumerate(calls):
                call.ask()
                stream = await call.answered()
                total = await asyncio.to_thread(check_sizes, stream, call.order, source.name)
                ask_next = calls[number + 1].ask if call is not calls[-1] else _nothing
                reader = Reader(stream, source.name, self._times.stall_seconds)
                await self._pump(reader, total, intake, ask_next)
                await call.close()
        except OSError as error:
            raise FetchError(server=source.name, detail=describe(error)) from error
        finally:
            try:
                await outlast(self._publish(asyncio.to_thread(intake.finish)))
            finally:
                await outlast(_close(calls))
        if intake.error is not None:
            raise intake.error

    async def _pump(
        self, reader: Reader, left: int, intake: Intake, near_end: Callable[[], None]
    ) -> None:
        """Read ``left`` bytes while a thread stores those before; ``near_end`` is called from when
        little is left.
        """
        loop = asyncio.get_running_loop()
        arriving = _Arriving(self._batch)
        reading = asyncio.create_task(arriving.read(reader, left, near_end))
        storing: deque[asyncio.Future[Taken]] = deque()
        try:
            while await arriving.some():
                if storing:
                    await outlast(asyncio.wait(storing))
                if intake.error is not None:
                    break
                storing.append(loop.run_in_executor(None, intake.take, *arriving.take()))
                if len(storing) > 1:  # taken over while the thread has other work already
                    await outlast(self._publish(_settled(intake, storing.popleft())))
        finally:
            reading.cancel()
            await outlast(self._end(reading, intake, storing))
        if intake.error is not None:
            raise intake.error
        await reading

    async def _end(
        self,
        reading: asyncio.Task[None],
        intake: Intake,
        storing: Iterable[asyncio.Future[Taken]],
    ) -> None:
        """Wait until nothing is read any more, and take over what is being stored."""
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # of no interest behind an error of our own
        for taken in storing:
            await self._publish(_settled(intake, taken))


async def _settled(intake: Intake, storing: asyncio.Future[Taken]) -> list[Stored]:
    """What a thread is storing, indexed."""
    return await asyncio.to_thread(intake.settle, await storing)


class _Arriving:
    """Bytes that have come and are not stored yet, up to ``batch`` of them."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._parts: list[bytes | bytearray | memoryview] = []
        self._size = 0
        self._over = False
        self._room = asyncio.Event()
        self._some = asyncio.Event()

    async def read(self, reader: Reader, left: int, near_end: Callable[[], None]) -> None:
        """Read until ``left`` bytes have come; raises FetchError."""
        try:
            while left:
                while self._size >= self._batch:
                    self._room.clear()
                    await self._room.wait()
                data = await reader.read(self._batch - self._size, left)
                left -= len(data)
                if left <= AHEAD:
                    near_end()
                self._parts.append(data)
                self._size += len(data)
                self._some.set()
        finally:
            self._over = True
            self._some.set()

    async def some(self) -> bool:
        """Wait until there is something; False when nothing comes any more."""
        while not self._parts and not self._over:
            self._some.clear()
            await self._some.wait()
        return bool(self._parts)

    def take(self) -> list[bytes | bytearray | memoryview]:
        """All that is there, in the parts in which it came."""
        parts, self._parts, self._size = self._parts, [], 0
        self._room.set()
        return parts


class _Call:
    """One request for objects, which may be made before its answer can be read."""

    def __init__(
        self, source: ObjectSource, order: Sequence[tuple[bytes, int]], answer_seconds: float
    ) -> None:
        self.order = order
        self._source = source
        self._answer_seconds = answer_seconds
        self._stack = AsyncExitStack()
        self._answer: asyncio.Task[ObjectStream] | None = None

    def ask(self) -> None:
        """Make the request, unless it was made."""
        if self._answer is None:
            self._answer = asyncio.create_task(self._wait())

    async def answered(self) -> ObjectStream:
        """The answer; raises what `ObjectSource.open_objects` raises, and FetchError."""
        assert self._answer is not None
        return await self._answer

    async def close(self) -> None:
        """Hang up; what the answer would have raised does not matter any more."""
        if self._answer is not None:
            self._answer.cancel()
            await outlast(asyncio.wait([self._answer]))
            if not self._answer.cancelled():
                self._answer.exception()
        await self._stack.aclose()

    async def _wait(self) -> ObjectStream:
        """Ask, and wait for the answer, though not for ever."""
        call = self._source.open_objects([hash_ for hash_, _ in self.order])
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await self._stack.enter_async_context(call)
        except TimeoutError:
            detail = f"it did not answer for {self._answer_seconds:g} s"
            raise FetchError(server=self._source.name, detail=detail) from None


async def _close(calls: Iterable[_Call]) -> None:
    for call in calls:
        await call.close()


def _nothing() -> None:
    """No request follows the last one."""


def _requests(order: Sequence[tuple[bytes, int]]) -> list[Sequence[tuple[bytes, int]]]:
    """What is asked for at a time: at first few, so that bytes come while more is asked for."""
    starts = [*([0] if order else []), *range(FIRST_REQUEST, len(order), REQUEST)]
    return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=False)]
