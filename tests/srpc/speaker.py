"""A server of a test that talks to its callers as it was told to, whatever they say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from smallstack.srpc.connection import Connection


@asynccontextmanager
async def speaking(
    talk: Callable[[Connection], Awaitable[None]], heard: bytearray
) -> AsyncIterator[tuple[str, int]]:
    """Its address; after ``talk`` it only listens, and ``heard`` gets what comes."""
    ended: list[asyncio.Task[None]] = []

    async def speak(conn: Connection) -> None:
        await talk(conn)
        await conn.flush()
        while data := await conn.read_some():
            heard.extend(data)
        conn.abort()

    class Speaker(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            ended.append(asyncio.ensure_future(speak(self)))

    serving = await asyncio.get_running_loop().create_server(Speaker, "127.0.0.1", 0)
    try:
        yield serving.sockets[0].getsockname()[:2]
    finally:
        serving.close()
        await asyncio.gather(*ended)
