"""How fast a peer is with something large that goes in many pieces.

Each piece alone may take its time, and between two of them the daemon may have work of its own, of
which the peer knows nothing. So what counts is for how long it was waited for in all: more than the
connection's patience, and a second for every `SLOWEST` bytes, and it is given up.
"""

from smallstack.srpc.stream import Stream


class Pace:
    """Of one thing that a peer sends, or takes, on a stream."""

    __slots__ = ("_size", "_stream", "_waited")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waited = 0.0
        self._size = 0

    async def read(self, limit: int) -> bytes:
        """Its next bytes, between 1 and ``limit``; b"" when the peer has ended before.

        Raises ConnectionClosedError, PeerStalledError.
        """
        begun = self._stream.time()
        data = await self._stream.read_some(limit, stall=True)
        self._count(begun, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send the next bytes. Raises ConnectionClosedError, PeerStalledError."""
        begun = self._stream.time()
        self._stream.write(data)
        await self._stream.flush()
        self._count(begun, len(data))

    def _count(self, begun: float, size: int) -> None:
        now = self._stream.time()
        self._waited += now - begun
        self._size += size
        self._stream.hurry(now - self._waited, self._size)
