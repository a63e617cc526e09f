"""Gets objects from a peer into a store: the next request is made while the last one comes.

The loop reads, or waits while a thread does; one thread checks and stores, another what is large.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from smallstack.objects.errors import FetchError
from smallstack.objects.index import Index
from smallstack.objects.intake import Intake
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

BATCH: Final = 4 << 20
"""Bytes handed to a thread at a time; a fetch holds three times this and one small object."""
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
    ) -> None:
        self._entry = entry
        self._source = source
        self._times = times
        self._publish = publish

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
            await outlast(self._publish(asyncio.to_thread(intake.finish)))
            for call in calls:
                await call.close()
        if intake.error is not None:
            raise intake.error

    async def _pump(
        self,
        reader: Reader,
        left: int,
        intake: Intake,
        near_end: Callable[[], None],
    ) -> None:
        """Read the next bytes while a thread stores the last ones; ``near_end`` is called
        from when little is left.
        """
        loop = asyncio.get_running_loop()
        storing: asyncio.Future[list[Stored]] | None = None
        try:
            while left:
                parts = [await reader.read(BATCH, left)]
                size = len(parts[0])
                while storing is not None and not storing.done() and size < min(left, BATCH):
                    parts.append(await reader.read(BATCH, left - size))
                    size += len(parts[-1])
                left -= size
                if left <= AHEAD:
                    near_end()
                if storing is not None:
                    stored, storing = storing, None
                    await outlast(self._publish(stored))
                if intake.error is not None:
                    break
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                storing = loop.run_in_executor(None, intake.feed, data)
        finally:
            if storing is not None:
                await outlast(self._publish(storing))
        if intake.error is not None:
            raise intake.error


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


def _nothing() -> None:
    """No request follows the last one."""


def _requests(order: Sequence[tuple[bytes, int]]) -> list[Sequence[tuple[bytes, int]]]:
    """What is asked for at a time: at first few, so that bytes come while more is asked for."""
    starts = [*([0] if order else []), *range(FIRST_REQUEST, len(order), REQUEST)]
    return [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=False)]
