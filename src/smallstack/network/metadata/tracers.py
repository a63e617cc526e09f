"""Who watches a VM's metadata requests (``TraceVmMetadata``)."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

_BACKLOG = 16


class Tracer:
    """The paths that one VM asks for from now on, as an asynchronous iterator.

    A watcher that falls behind by 16 misses paths; it never slows the VM down. It ends with
    `close`, or when the VM goes.
    """

    def __init__(self, tracers: "Tracers", ip: str) -> None:
        self._tracers = tracers
        self.ip = ip
        self._queue: asyncio.Queue[str | None] = asyncio.Queue(_BACKLOG + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (path := await self._queue.get()) is not None:
            yield path

    def offer(self, path: str) -> None:
        """Take a path unless too many wait."""
        if self._queue.qsize() < _BACKLOG:
            self._queue.put_nowait(path)

    def close(self) -> None:
        """End the iteration after what is queued; once is enough."""
        if self._tracers.discard(self):
            self._queue.put_nowait(None)


class Tracers:
    """The tracers of every VM, by its IP."""

    def __init__(self) -> None:
        self._by_ip: dict[str, set[Tracer]] = {}

    def open(self, ip: str) -> Tracer:
        """Watch the VM of that address."""
        tracer = Tracer(self, ip)
        self._by_ip.setdefault(ip, set()).add(tracer)
        return tracer

    def offer(self, ip: str, path: str) -> None:
        """Tell those who watch ``ip`` of a request."""
        for tracer in self._by_ip.get(ip, ()):
            tracer.offer(path)

    def end(self, ip: str) -> None:
        """End every watch of a VM that goes."""
        for tracer in list(self._by_ip.get(ip, ())):
            tracer.close()

    def discard(self, tracer: Tracer) -> bool:
        """Forget a tracer; False if it was forgotten already."""
        known = self._by_ip.get(tracer.ip, set())
        if tracer not in known:
            return False
        known.discard(tracer)
        if not known:
            del self._by_ip[tracer.ip]
        return True
