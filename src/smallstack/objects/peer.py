"""The usual source of objects: a peer's ``ObjectServer.GetObjects``, compressed if it can."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import Final, Literal, Self, cast

from smallstack.identity.credentials import ClientCredentials
from smallstack.identity.renewal import Renewable
from smallstack.objects.errors import FetchError, ObjectMissingError
from smallstack.objects.packed import HEADER, PackedError, frame_size, unpack
from smallstack.proto.kinds import Hash
from smallstack.proto.objectserver import (
    GetCompressedObjectsRequest,
    GetCompressedObjectsResponse,
    GetObjectsRequest,
    GetObjectsResponse,
)
from smallstack.srpc.aside import Aside
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
    PackedError,
)
_log = logging.getLogger("smallstack.objects")
_UNKNOWN = re.compile(r"(?:first of (\d+) )?unknown objects?: ([0-9a-f]{128})")

SHOWN: Final = 300
Compression = Literal["auto", "zstd", "none"]
COMPRESSION: Final[tuple[Compression, ...]] = ("auto", "zstd", "none")
Connect = Callable[[], AbstractAsyncContextManager[Client]]
"""Gives a connection for the time of one transfer: a fresh one, or one of a pool."""


class PeerSource:
    """Objects of the server at ``address``, over connections that ``connect`` gives.

    One transfer at a time takes a connection; after a cut the next one gets another. They are asked
    for compressed where that helps and the server can do it: one that does not know the method, or
    refuses it, is asked the usual way from then on.
    """

    def __init__(self, address: str, connect: Connect, compression: Compression = "auto") -> None:
        """``compression``: ``auto`` leaves it for servers on this machine."""
        self.name = address
        self._connect = connect
        self._compression = compression
        self._refused = False

    @classmethod
    def dialling(
        cls,
        address: str,
        credentials: ClientCredentials | Renewable[ClientCredentials] | None,
        compression: Compression = "auto",
    ) -> "PeerSource":
        """A source that dials ``host:port`` for each transfer; without credentials in clear."""

        @asynccontextmanager
        async def connect() -> AsyncIterator[Client]:
            async with await dial(address, credentials, move_local=True) as client:
                yield client

        return cls(address, connect, compression)

    @asynccontextmanager
    async def open_objects(self, hashes: Sequence[bytes]) -> AsyncIterator["PeerStream"]:
        """Ask for objects; see `ObjectSource`."""
        with _wrapped(self.name):
            async with self._connect() as client, AsyncExitStack() as stack:
                conn, packed = await self._start(client, stack)
                await conn.encode_in_thread(await asyncio.to_thread(_request, hashes, packed))
                await conn.flush()
                kind = GetCompressedObjectsResponse if packed else GetObjectsResponse
                response = await conn.decode(kind)
                if text := response.response_string:
                    raise self._refusal(text)
                reader = _unpacked(conn, response.object_sizes) if packed else None
                with PeerStream(conn, response.object_sizes, self.name, reader) as stream:
                    yield stream

    async def _start(self, client: Client, stack: AsyncExitStack) -> tuple[Connection, bool]:
        """Begin the call: its connection, and whether what comes is compressed."""
        wanted = self._compression == "zstd" or (
            self._compression == "auto" and not client.conn.is_local
        )
        if wanted and not self._refused:
            try:
                call = client.raw("ObjectServer.GetCompressedObjects")
                return await stack.enter_async_context(call), True
            except CallError as error:
                _log.info("%s sends objects as they are: %s", self.name, error)
                self._refused = True
        return await stack.enter_async_context(client.raw("ObjectServer.GetObjects")), False

    def _refusal(self, text: str) -> SmallStackError:
        if match := _UNKNOWN.search(text):
            return ObjectMissingError(count=int(match[1] or 1), hash=match[2], server=self.name)
        return FetchError(server=self.name, detail=shown(text))


class PeerStream:
    """One reply of GetObjects or GetCompressedObjects."""

    def __init__(
        self,
        conn: Connection,
        sizes: Sequence[int],
        server: str,
        unpacked: AsyncIterator[bytes] | None,
    ) -> None:
        self.sizes = sizes
        self._conn = conn
        self._server = server
        self._unpacked = unpacked
        self._piece = memoryview(b"")
        self._stack = ExitStack()
        self._tried = False
        self._aside: Aside | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    async def read(self, limit: int) -> bytes | bytearray | memoryview:
        """See `ObjectStream`."""
        with _wrapped(self._server):
            if self._unpacked is None:
                return await self._read_plain(limit)
            if not self._piece:
                self._piece = memoryview(await anext(self._unpacked, b""))
        part, self._piece = self._piece[:limit], self._piece[limit:]
        return bytes(part)

    async def _read_plain(self, limit: int) -> bytes | bytearray | memoryview:
        if not self._tried and not self._conn.has_data():
            self._tried = True
            self._aside = self._stack.enter_context(self._conn.reading_aside())
        if self._aside is not None:
            return await self._aside.receive(limit)
        return await self._conn.read_some(limit)


async def _unpacked(conn: Connection, sizes: Sequence[int]) -> AsyncIterator[bytes]:
    """The pieces of a compressed reply; nothing more once the peer closed between two."""
    left = await asyncio.to_thread(sum, sizes)
    while left and (conn.has_data() or await conn.more()):
        frame = await conn.read_exactly(frame_size(await conn.read_exactly(HEADER)))
        piece = await asyncio.to_thread(unpack, frame, left)
        left -= len(piece)
        yield piece


def _request(hashes: Sequence[bytes], packed: bool) -> GetObjectsRequest:
    kind = GetCompressedObjectsRequest if packed else GetObjectsRequest
    return kind(hashes=cast(list[Hash], list(hashes)))  # bytes do: gob is what is written


def shown(text: str) -> str:
    """What a peer said, in one line of what can be printed, and not too long."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:SHOWN])


@contextmanager
def _wrapped(server: str) -> Iterator[None]:
    """Makes a FetchError of whatever goes wrong with a connection."""
    try:
        yield
    except _TROUBLE as error:
        raise FetchError(server=server, detail=describe(error)) from error
