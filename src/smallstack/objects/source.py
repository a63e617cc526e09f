"""Where objects come from: what is asked of a peer, and what is not taken from one."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from smallstack.objects.errors import FetchError, ObjectSizeError

STALL_SECONDS: Final = 60.0
"""How long a peer may send nothing in the middle of a transfer."""
REQUEST: Final = 50_000
"""Objects asked for at a time: some 6 MB of digests."""


class ObjectStream(Protocol):
    """Objects on their way: first all sizes, then their bytes one object after another."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each object, in the order asked for."""

    async def read(self, limit: int) -> bytes:
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
    for (hash_, size), theirs in zip(order, stream.sizes, strict=True):
        if size != theirs:
            raise ObjectSizeError(hash=hash_.hex(), server=server, found=theirs, size=size)
    return sum(stream.sizes)


async def read_next(
    stream: ObjectStream,
    limit: int,
    left: int,
    server: str,
    stall_seconds: float = STALL_SECONDS,
) -> bytes:
    """The next bytes, at least one and at most ``limit``, of the ``left`` that are to come.

    Raises FetchError when the peer stalls or closes.
    """
    try:
        async with asyncio.timeout(stall_seconds):
            data = await stream.read(min(left, limit))
    except TimeoutError:
        detail = f"it sent nothing for {stall_seconds:g} s"
        raise FetchError(server=server, detail=detail) from None
    if not data:
        detail = f"it closed the connection {left} bytes before the end"
        raise FetchError(server=server, detail=detail)
    return data
