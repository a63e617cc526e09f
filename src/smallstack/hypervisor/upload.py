"""The bytes that a client announced to send behind its request, and sends."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from smallstack.outlast import outlast
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.pace import Pace

CHUNK: Final = 256 * 1024


class Upload:
    """``left`` bytes of a connection's stream."""

    def __init__(self, conn: Connection, size: int) -> None:
        self.left = size
        self._conn = conn
        self._pace = Pace(conn)

    async def pieces(self, count: int) -> AsyncGenerator[bytes, None]:
        """The next ``count`` bytes. Raises ConnectionClosedError, PeerStalledError."""
        while count:
            data = await self._some(count)
            count -= len(data)
            yield data

    async def skip(self, count: int) -> None:
        """Throw the next ``count`` bytes away. Raises ConnectionClosedError, PeerStalledError."""
        async for _ in self.pieces(count):
            pass

    async def drain(self) -> None:
        """`skip` what is left, so that a refusal is read by a client that first sends all."""
        await self.skip(self.left)

    async def store(self, count: int, path: Path) -> None:
        """Write the next ``count`` bytes to a file, 0600, new or emptied, not synced.

        Raises OSError, ConnectionClosedError, PeerStalledError.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        opened: list[int] = []
        try:
            # Outlasted: nothing may write to a descriptor that is closed, or open one that nobody
            # closes.
            await outlast(asyncio.to_thread(os.open, path, flags, 0o600), opened.append)
            async for data in self.pieces(count):
                await outlast(asyncio.to_thread(_write, opened[0], data))
        finally:
            for fd in opened:
                os.close(fd)

    async def _some(self, limit: int) -> bytes:
        data = await self._pace.read(min(limit, CHUNK))
        if not data:
            detail = f"{self.left} of the bytes it announced are missing"
            raise ConnectionClosedError(peer=self._conn.peer_name, detail=detail)
        self.left -= len(data)
        return data


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
