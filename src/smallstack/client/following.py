"""Calls that are answered by many replies, while data may still be on their way to the server."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from smallstack.client.errors import ServiceError, SourceError
from smallstack.client.service import Sent, Source
from smallstack.srpc.client import Client
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError


class Progress(Protocol):
    """A reply that tells how far a method is: the last one has ``final``."""

    error: str
    final: bool


P = TypeVar("P", bound=Progress)


def image_source(image_data: bytes | Path) -> Source:
    """A disk image to be sent; raises SourceError for an empty one."""
    source = Source(image_data)
    if not source.size:
        raise SourceError(name=image_data, detail="it is empty, or no regular file")
    return source


async def follow(
    client: Client,
    method: str,
    request: Any,
    reply_type: type[P],
    sources: Sequence[Source] = (),
    sent: Sent | None = None,
) -> AsyncGenerator[P, None]:
    """Every reply as it comes, up to the last; ``sources`` follow the request.

    ``sent`` hears how much of the first of them has gone. Leaving the iterator early gives the
    call up, and closes the connection. Raises ServiceError, SourceError.
    """
    failure = ""
    async with client.raw(method) as conn:
        conn.encode(request)
        sending = asyncio.ensure_future(_send(conn, sources, sent))
        try:
            while True:
                try:
                    reply = await conn.decode(reply_type)
                except ConnectionClosedError:
                    if sending.done():
                        sending.result()  # what broke the sending says more
                    raise
                failure = reply.error
                if not failure:
                    yield reply
                if failure or reply.final:
                    break
            if not sending.done():  # refused in the middle of the data
                conn.abort()
        finally:
            # Also when the iterator is left: what became of the sending is of no use then.
            sending.cancel()
            await asyncio.wait((sending,))
            sending.cancelled() or sending.exception()
    if failure:
        raise ServiceError(text=failure)


async def _send(conn: Connection, sources: Sequence[Source], sent: Sent | None) -> None:
    await conn.flush()
    for source in sources:
        await source.send(conn, sent if source is sources[0] else None)
