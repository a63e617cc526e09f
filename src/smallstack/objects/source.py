"""Where objects come from: what is asked of a peer, and what is not taken from one."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from smallstack.objects.errors import FetchError, ObjectSizeError

STALL_SECONDS: Final = 60.0
"""How long a peer may send nothing in the middle of a transfer."""
DRIBBLE: Final = 1 << 16
"""Bytes that a peer has to send in that time at least."""
ANSWER_SECONDS: Final = 600.0
"""How long a peer may take to say that it will send; it may have many others to serve first."""
FIRST_REQUEST: Final = 512
"""Objects asked for in the first request of a fetch."""
REQUEST: Final = 16_384
"""Objects asked for at a time: some 2 MB of digests, whose lists are made in well under 5 ms."""


class ObjectStream(Protocol):
    """Objects on their way: first all sizes, then their bytes one object after another."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each object, in the order asked for."""

    async def read(self, limit: int) -> bytes | bytearray | memoryview:
        """The next bytes as they come, at most ``limit``; b"" when the peer closed."""


class ObjectSource(Protocol):
    """A peer that has objects."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def open_objects(self, hashes: Sequence[bytes]) -> AbstractAsyncContextManager[ObjectStream]:
        """Ask for objects, all of which must be there.

        Raises ObjectMissingError when one is not, FetchError when the peer cannot be reached,
        goes away, or sends what is not valid; so does ``read``.
        """


def check_sizes(stream: ObjectStream, order: Sequence[tuple[bytes, int]], server: str) -> int:
    """How many bytes are about to come.

    Raises FetchError or ObjectSizeError unless the peer is about to send what was asked for.
    """
    if len(stream.sizes) != len(order):
        raise FetchError(
            server=server, detail=f"it sent {len(stream.sizes)} sizes for {len(order)} objects"
        )
    if stream.sizes == [size for _, size in order]:
        return sum(stream.sizes)
    for (hash_, size), theirs in zip(order, stream.sizes, strict=True):
        if size != theirs:
            raise ObjectSizeError(hash=hash_.hex(), server=server, found=theirs, size=size)
    return sum(stream.sizes)


class Reader:
    """Reads a stream from a peer that may stall, or keep a create waiting by a byte a minute."""

    def __init__(
        self,
        stream: ObjectStream,
        server: str,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` tells seconds; only what is spent waiting for the peer counts."""
        self.server = server
        """What errors call it."""
        self._stream = stream
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._waited = 0.0
        self._received = 0

    async def read(self, limit: int, left: int) -> bytes | bytearray | memoryview:
        """The next bytes, at least one and at most ``limit``, of the ``left`` that are to come.

        Raises FetchError when the peer stalls, dribbles or closes.
        """
        started = self._clock()
        try:
            async with asyncio.timeout(self._stall_seconds):
                data = await self._stream.read(min(left, limit))
        except TimeoutError:
            raise self._error(f"it sent nothing for {self._stall_seconds:g} s") from None
        if not data:
            raise self._error(f"it closed the connection {left} bytes before the end")
        self._waited += self._clock() - started
        self._received += len(data)
        if self._received >= DRIBBLE:
            self._waited, self._received = 0.0, 0
        elif self._waited > self._stall_seconds and len(data) < left:
            raise self._error(f"it sent {self._received} bytes in {self._waited:.0f} s")
        return data

    def _error(self, detail: str) -> FetchError:
        return FetchError(server=self.server, detail=detail)
