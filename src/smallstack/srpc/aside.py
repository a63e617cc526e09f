"""The socket of a plain connection past its transport, for the time of one large transfer.

What passes the event loop is copied three times and cut into pieces of 256 KiB. Here a thread moves
what can be moved, waits for milliseconds at most where the peer was quick just now, and leaves
longer waits to the loop, so that a slow peer holds no thread for long. Meanwhile nothing else may
be read from the connection, or written to it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from smallstack.outlast import outlast
from smallstack.srpc.patience import Patience
from smallstack.srpc.receive import Receiver

T = TypeVar("T")
LINGER_MS: Final = 2
"""How long a thread waits for a peer that was quick a moment ago."""
SEND_BUFFER: Final = 1 << 20
"""Bytes that the system may hold for a peer that takes them as fast as they come."""


class Aside:
    """A duplicate of a connected socket. A context manager: it is closed at the end."""

    def __init__(self, sock: int, patience: Patience | None = None) -> None:
        """``sock`` is the descriptor of the connection, non-blocking; ``patience`` is how long a
        peer may take nothing of what is sent. Raises OSError.
        """
        self._fd = os.dup(sock)
        self._receiver = Receiver()
        self._patience = patience
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        self._receiver.close()

    def buffer_more(self) -> None:
        """Have the system take more bytes at a time, as far as it allows."""
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, option, SEND_BUFFER)
                except OSError:
                    continue
                break

    async def receive(self, limit: int) -> bytes | memoryview:
        """1 to ``limit`` bytes, or b"" at the end of the stream. Raises OSError.

        Their memory is used again once nobody has a view of it any more.
        Not to be cancelled by anybody who would go on reading: what was read is lost.
        """
        while (data := await self._receive(limit)) is None:
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
        return data

    async def _receive(self, limit: int) -> bytes | memoryview | None:
        return await self._in_thread(self._receiver.receive, self._fd, limit, LINGER_MS)

    async def run(self, work: Callable[[int], T]) -> T:
        """The result of ``work(descriptor)``, which runs in a thread and hardly waits."""
        return await self._in_thread(work, self._fd)

    async def writable(self) -> bool:
        """Wait until the system takes more; False when patience ends before."""
        return await self._ready(self._loop.add_writer, self._loop.remove_writer, self._patience)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await outlast(self._loop.run_in_executor(None, work, *args))

    async def _ready(
        self,
        add: Callable[..., object],
        remove: Callable[[int], object],
        patience: Patience | None = None,
    ) -> bool:
        ready = self._loop.create_future()
        add(self._fd, _done, ready)
        try:
            if patience is not None:
                return await patience.wait(ready)
            await ready
        finally:
            remove(self._fd)
        return True


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_SO_SNDBUFFORCE: Final = 32
