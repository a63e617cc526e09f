"""The client of the ObjectServer service: bytes by their SHA-512."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from smallstack.client.errors import ObjectsMissingError, ServiceError
from smallstack.client.service import CHUNK, ServiceClient, Source
from smallstack.proto import objectserver as proto
from smallstack.proto.kinds import Hash
from smallstack.srpc.connection import Connection

TURN_OBJECTS: Final = 32
"""Objects sent before others get their turn: some 40 µs each."""


class NewObject(NamedTuple):
    """An object to add: its bytes, or the file that has them, and its SHA-512 if known."""

    data: bytes | Path
    expected: bytes | None = None


class ObjectReader:
    """One object as it comes in: iterate over its pieces, or read it at once."""

    def __init__(self, conn: Connection, digest: bytes, size: int) -> None:
        self.digest = digest
        self.size = size
        """Bytes, all together."""
        self._conn = conn
        self._left = size

    async def read(self, limit: int = CHUNK) -> bytes:
        """The next piece of at most ``limit`` bytes, b"" at the end of the object.

        Raises ConnectionClosedError when the server stops in the middle.
        """
        if not self._left:
            return b""
        data = await self._conn.read_some(min(limit, self._left))
        if not data:
            data = await self._conn.read_exactly(self._left)  # raises
        self._left -= len(data)
        return data

    async def read_all(self) -> bytes:
        """What is left of it."""
        left, self._left = self._left, 0
        return await self._conn.read_exactly(left)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data


class ObjectServerClient(ServiceClient):
    """Digests are 64 bytes; nothing here checks that bytes suit their digest."""

    service = "ObjectServer"

    async def check_objects(self, digests: Sequence[bytes]) -> list[int]:
        """The size of each object in bytes, 0 for those the server lacks."""
        request = proto.CheckObjectsRequest(hashes=[Hash(digest) for digest in digests])
        return (await self.call("CheckObjects", request, proto.CheckObjectsResponse)).object_sizes

    async def get_objects(
        self, digests: Sequence[bytes], exclusive: bool = False
    ) -> AsyncGenerator[ObjectReader, None]:
        """The objects in the order asked for; what is not read of one is skipped.

        Raises ObjectsMissingError before the first when the server lacks any.
        """
        missing = ""
        async with self.client.raw("ObjectServer.GetObjects") as conn:
            hashes = [Hash(digest) for digest in digests]
            conn.encode(proto.GetObjectsRequest(hashes=hashes, exclusive=exclusive))
            await conn.flush()
            reply = await conn.decode(proto.GetObjectsResponse)
            missing = reply.response_string
            if not missing and len(reply.object_sizes) != len(hashes):
                raise ServiceError(
                    text=f"{self.client.address} answered for {len(reply.object_sizes)} "
                    f"objects, not {len(hashes)}"
                )
            if not missing:
                for digest, size in zip(hashes, reply.object_sizes, strict=True):
                    reader = ObjectReader(conn, digest, size)
                    yield reader
                    async for _ in reader:
                        pass
        if missing:
            raise ObjectsMissingError(server=self.client.address, text=missing)

    async def add_objects(
        self, objects: Iterable[NewObject] | AsyncIterable[NewObject]
    ) -> list[proto.AddObjectResponse]:
        """Add objects; one reply each, with the digest and whether it was new.

        Empty objects do not exist: they are refused. Raises ServiceError with the first failure.
        """
        async with self.client.raw("ObjectServer.AddObjects") as conn:
            replies = _Replies(conn)
            reading = asyncio.ensure_future(replies.read())
            try:
                if isinstance(objects, AsyncIterable):
                    async for one in objects:
                        await self._add(conn, one, replies)
                else:
                    for one in objects:
                        await self._add(conn, one, replies)
                conn.encode(proto.AddObjectRequest())
                await conn.flush()
                replies.all_sent()
                await reading
            finally:
                reading.cancel()
        return replies.received

    async def import_objects(
        self, base_url: str, digests: Sequence[bytes], sizes: Sequence[int] = ()
    ) -> proto.ImportObjectsResponse:
        """Have the server fetch objects, each from ``base_url``, a slash and its digest in hex.

        ``sizes``, if given, are what they must have. The reply's ``error`` is for the caller.
        """
        request = proto.ImportObjectsRequest(
            base_remote_url=base_url,
            hashes=[Hash(digest) for digest in digests],
            object_sizes=list(sizes),
        )
        return await self.call("ImportObjects", request, proto.ImportObjectsResponse)

    async def test_bandwidth(
        self, duration: int, chunk_size: int = 65535, *, to_server: bool = False
    ) -> tuple[int, int]:
        """Bytes that went, and how long that took by the server's clock, in ns.

        ``duration`` (ns) is how long to send, up to a minute; ``chunk_size`` is at most 65535.
        """
        async with self.client.raw("ObjectServer.TestBandwidth") as conn:
            conn.encode(
                proto.TestBandwidthRequest(
                    duration=duration, chunk_size=chunk_size, send_to_server=to_server
                )
            )
            await conn.flush()
            work = (
                _send_chunks(conn, duration, chunk_size) if to_server else _take(conn, chunk_size)
            )
            size = await work
            return size, (await conn.decode(proto.TestBandwidthResponse)).server_duration

    async def _add(self, conn: Connection, one: NewObject, replies: "_Replies") -> None:
        source = Source(one.data)
        if not source.size:
            raise ServiceError(text=f"object {one.data!r:.80} is empty")
        expected = None if one.expected is None else Hash(one.expected)
        conn.encode(proto.AddObjectRequest(length=source.size, expected_hash=expected))
        replies.sent()
        await source.send(conn)
        replies.check()
        if replies.expected % TURN_OBJECTS == 0:
            await asyncio.sleep(0)  # others get their turn between small objects too


async def _send_chunks(conn: Connection, duration: int, size: int) -> int:
    chunk, sent = bytes(size), 0
    until = conn.time() + duration / 1e9
    while conn.time() < until:
        conn.write(chunk + b"\1")
        await conn.flush()
        sent += size + 1
    conn.write(chunk + b"\0")
    await conn.flush()
    return sent + size + 1


async def _take(conn: Connection, size: int) -> int:
    received, last = 0, 1
    while last:
        last = (await conn.read_exactly(size + 1))[-1]
        received += size + 1
    return received


class _Replies:
    """Takes replies while objects are still being sent, so that neither side waits for ever."""

    def __init__(self, conn: Connection) -> None:
        self.received: list[proto.AddObjectResponse] = []
        self._conn = conn
        self.expected = 0
        self._more = asyncio.Event()
        self._ended = False
        self._failure: BaseException | None = None

    def sent(self) -> None:
        self.expected += 1
        self._more.set()

    def all_sent(self) -> None:
        self._ended = True
        self._more.set()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def read(self) -> None:
        try:
            while True:
                while len(self.received) < self.expected:
                    reply = await self._conn.decode(proto.AddObjectResponse)
                    if reply.error_string:
                        raise ServiceError(text=reply.error_string)
                    self.received.append(reply)
                if self._ended:
                    return
                self._more.clear()
                await self._more.wait()
        except Exception as error:
            self._failure = error
            raise
