"""The usual source of objects: a peer's ``ObjectServer.GetObjects``."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from smallstack.identity.credentials import ClientCredentials
from smallstack.objects.errors import FetchError, ObjectMissingError
from smallstack.proto.kinds import Hash
from smallstack.proto.objectserver import GetObjectsRequest, GetObjectsResponse
from smallstack.srpc.client import Client, dial
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import (
    CallError,
    ConnectError,
    ConnectionClosedError,
    PeerStalledError,
    RemoteProtocolError,
    TlsError,
)
from smallstack.telemetry.errors import SmallStackError, describe

_TROUBLE = (
    OSError,
    CallError,
    ConnectError,
    ConnectionClosedError,
    PeerStalledError,
    RemoteProtocolError,
    TlsError,
)
_UNKNOWN = re.compile(r"(?:first of (\d+) )?unknown objects?: ([0-9a-f]{128})")

Connect = Callable[[], AbstractAsyncContextManager[Client]]
"""Gives a connection for the time of one transfer: a fresh one, or one of a pool."""


class PeerSource:
    """Objects of the server at ``address``, over connections that ``connect`` gives.

    One transfer at a time takes a connection; after a cut the next one gets another.
    """

    def __init__(self, address: str, connect: Connect) -> None:
        self.name = address
        self._connect = connect

    @classmethod
    def dialling(cls, address: str, credentials: ClientCredentials | None) -> "PeerSource":
        """A source that dials ``host:port`` for each transfer; without credentials in clear."""

        @asynccontextmanager
        async def connect() -> AsyncIterator[Client]:
            async with await dial(address, credentials) as client:
                yield client

        return cls(address, connect)

    @asynccontextmanager
    async def open_objects(self, hashes: Sequence[bytes]) -> AsyncIterator["PeerStream"]:
        """Ask for objects; see `ObjectSource`."""
        request = await asyncio.to_thread(_request, hashes)
        with _wrapped(self.name):
            async with self._connect() as client, client.raw("ObjectServer.GetObjects") as conn:
                await conn.encode_in_thread(request)
                await conn.flush()
                response = await conn.decode(GetObjectsResponse)
                if text := response.response_string:
                    raise self._refusal(text)
                yield PeerStream(conn, response.object_sizes, self.name)

    def _refusal(self, text: str) -> SmallStackError:
        if match := _UNKNOWN.search(text):
            return ObjectMissingError(count=int(match[1] or 1), hash=match[2], server=self.name)
        return FetchError(server=self.name, detail=text)


class PeerStream:
    """One reply of GetObjects."""

    def __init__(self, conn: Connection, sizes: Sequence[int], server: str) -> None:
        self.sizes = sizes
        self._conn = conn
        self._server = server

    async def read(self, limit: int) -> bytes:
        """See `ObjectStream`."""
        with _wrapped(self._server):
            return await self._conn.read_some(limit)


def _request(hashes: Sequence[bytes]) -> GetObjectsRequest:
    return GetObjectsRequest(hashes=[Hash(hash_) for hash_ in hashes])


@contextmanager
def _wrapped(server: str) -> Iterator[None]:
    """Makes a FetchError of whatever goes wrong with a connection."""
    try:
        yield
    except _TROUBLE as error:
        raise FetchError(server=server, detail=describe(error)) from error
