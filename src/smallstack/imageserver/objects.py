"""The ObjectServer service: objects in, objects out, which are there.

Data goes in batches of about a megabyte between the connection and a thread, so that many small
objects cost little more than their bytes, and memory stays bounded whatever is asked for.
"""

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Final

from smallstack.imageserver.bandwidth import test_bandwidth
from smallstack.imageserver.references import HOLD_SECONDS, References
from smallstack.objects.errors import ObjectCorruptError, ObjectError
from smallstack.objects.packed import PIECE, pack
from smallstack.objects.sender import ObjectSender
from smallstack.objects.sender import sizes as sizes_of
from smallstack.objects.store import Incoming, ObjectStore
from smallstack.proto.kinds import Hash
from smallstack.proto.objectserver import (
    AddObjectRequest,
    AddObjectResponse,
    CheckObjectsRequest,
    CheckObjectsResponse,
    GetCompressedObjectsRequest,
    GetCompressedObjectsResponse,
    GetObjectsRequest,
    GetObjectsResponse,
)
from smallstack.srpc.aside import LINGER_MS, Aside
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.pace import Pace
from smallstack.srpc.server import Call, Handler
from smallstack.srpc.slots import Slots
from smallstack.telemetry.errors import SmallStackError, describe

BATCH: Final = PIECE
BATCH_OBJECTS: Final = 64
AT_ONCE: Final = 8 << 20
"""Bytes that a thread sends at a time, if the client takes them."""
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOTCONN})
GET_SLOTS: Final = 100
"""Transfers at a time; more wait for a slot."""
USER_GET_SLOTS: Final = 50
"""Of one user; all Hypervisors may be one."""
_log = logging.getLogger("smallstack.imageserver")


class ObjectService:
    """The service over one store."""

    def __init__(
        self, store: ObjectStore, references: References, hold_seconds: float = HOLD_SECONDS
    ) -> None:
        """Added objects are held for ``hold_seconds`` after the call that added them."""
        self.store = store
        self.bytes_sent = 0
        self.bytes_received = 0
        self._references = references
        self._hold_seconds = hold_seconds
        self._slots = Slots(GET_SLOTS, USER_GET_SLOTS)

    @property
    def slots_used(self) -> int:
        """Transfers at this moment."""
        return self._slots.used

    def handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`."""
        return {
            "AddObjects": self.add_objects,
            "CheckObjects": self.check_objects,
            "GetCompressedObjects": self.get_compressed_objects,
            "GetObjects": self.get_objects,
            "TestBandwidth": test_bandwidth,
        }

    async def check_objects(self, call: Call, request: CheckObjectsRequest) -> CheckObjectsResponse:
        """Sizes in bytes, 0 for what is not there."""
        return CheckObjectsResponse(
            object_sizes=await asyncio.to_thread(self._sizes, request.hashes)
        )

    async def get_objects(self, call: Call) -> None:
        """All the objects asked for, one after the other, or none and why."""
        request = await call.conn.decode(GetObjectsRequest)
        await self._get(call, request.hashes, GetObjectsResponse, packed=False)

    async def get_compressed_objects(self, call: Call) -> None:
        """As `get_objects`, the bytes in frames of `smallstack.objects.packed`."""
        request = await call.conn.decode(GetCompressedObjectsRequest)
        await self._get(call, request.hashes, GetCompressedObjectsResponse, packed=True)

    async def _get(
        self,
        call: Call,
        hashes: Sequence[Hash],
        response: type[GetObjectsResponse],
        packed: bool,
    ) -> None:
        conn = call.conn
        async with self._slots.hold(call.peer.username or call.peer.remote_host):
            sizes = await asyncio.to_thread(self._sizes, hashes)
            missing = [h for h, size in zip(hashes, sizes, strict=True) if not size]
            if missing:
                conn.encode(response(response_string=_unknown(missing)))
                return
            await conn.encode_in_thread(response(object_sizes=sizes))
            await conn.flush()
            await self._send(conn, hashes, sizes, packed)

    async def add_objects(self, call: Call) -> None:
        """Objects until one of length 0; a reply each, in order."""
        conn = call.conn
        adder = _Adder(self.store, self._references, str(call.peer))
        adding: asyncio.Future[list[AddObjectResponse]] | None = None
        batch: list[AddObjectRequest | bytes] = []
        size = count = 0

        async def collect() -> None:
            nonlocal adding
            if adding is not None:
                done, adding = adding, None
                for response in await done:
                    conn.encode(response)
                conn.push()

        async def submit() -> None:
            nonlocal adding, batch, size, count
            await collect()
            adding = asyncio.ensure_future(asyncio.to_thread(adder.run, batch))
            batch, size, count = [], 0, 0

        try:
            while True:
                if batch and not conn.has_data():
                    await submit()
                if adding is not None and not conn.has_data():
                    await asyncio.shield(adding)
                    await collect()
                request = await conn.decode(AddObjectRequest, idle=True)
                if request.length < 1:
                    break
                batch.append(request)
                count += 1
                left, pace = request.length, Pace(conn)
                while left:
                    data = await pace.read(min(left, BATCH))
                    if not data:
                        raise ConnectionClosedError(
                            peer=conn.peer_name, detail=f"{left} bytes of an object are missing"
                        )
                    batch.append(data)
                    left -= len(data)
                    size += len(data)
                    self.bytes_received += len(data)
                    if size >= BATCH or count >= BATCH_OBJECTS:
                        await submit()
            await submit()
            await collect()
        finally:
            if adding is not None:
                await asyncio.wait([adding])
            adder.abort()
            asyncio.get_running_loop().call_later(
                self._hold_seconds, self._references.release, adder.held
            )
            _log.info(
                "AddObjects by %s: %d objects, %d of them new", call.peer, adder.count, adder.added
            )

    def _sizes(self, hashes: Sequence[Hash]) -> list[int]:
        return sizes_of(self.store.descriptor, self.store.flat, list(hashes))

    async def _send(
        self, conn: Connection, hashes: Sequence[Hash], sizes: Sequence[int], packed: bool
    ) -> None:
        if not packed:
            async with conn.writing_aside() as aside:
                if aside is not None:
                    await self._send_aside(conn, aside, hashes, sizes)
                    return
        pace = Pace(conn)
        sender = _Sender(self.store, hashes, sizes, packed)
        reading = asyncio.ensure_future(asyncio.to_thread(sender.next))
        try:
            while data := await asyncio.shield(reading):
                reading = asyncio.ensure_future(asyncio.to_thread(sender.next))
                self.bytes_sent += len(data)
                await pace.write(data)
        finally:
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()
            sender.close()

    async def _send_aside(
        self, conn: Connection, aside: Aside, hashes: Sequence[Hash], sizes: Sequence[int]
    ) -> None:
        """Send past the loop, which only waits for the client to take more."""
        store = self.store
        sender = ObjectSender(store.descriptor, store.flat, list(hashes), list(sizes))
        begun, total = conn.time(), 0
        try:
            while not sender.done:
                sent = await aside.run(lambda fd: sender.send(fd, AT_ONCE, LINGER_MS))
                total += sent
                self.bytes_sent += sent
                if sent < AT_ONCE and not sender.done:
                    in_time = await aside.writable()
                    if not in_time or (conn.patience and conn.patience.is_over(begun, total)):
                        raise conn.stalled()
        except OSError as error:
            if error.errno in _GONE:
                raise ConnectionClosedError(peer=conn.peer_name, detail=describe(error)) from error
            detail = "its file is too short" if error.errno == errno.ENODATA else describe(error)
            raise ObjectError(hash=sender.hash.hex(), detail=detail) from error
        finally:
            sender.close()


class _Sender:
    """Reads objects one after the other; one thread at a time uses it."""

    def __init__(
        self, store: ObjectStore, hashes: Sequence[Hash], sizes: Sequence[int], packed: bool
    ) -> None:
        self._store = store
        self._packed = packed
        self._coming = iter(zip(hashes, sizes, strict=True))
        self._hash = Hash.zero
        self._file: BinaryIO | None = None
        self._left = 0

    def next(self) -> bytes:
        """About a batch of bytes; b"" at the end. Raises ObjectError for a file cut short."""
        parts: list[bytes] = []
        room = BATCH
        while room > 0:
            if self._file is None:
                following = next(self._coming, None)
                if following is None:
                    break
                self._hash, self._left = following
                self._file = self._store.open(self._hash)
            data = self._file.read(min(room, self._left))
            if not data:
                raise ObjectError(
                    hash=self._hash.hex(), detail=f"its file is {self._left} bytes too short"
                )
            parts.append(data)
            room -= len(data)
            self._left -= len(data)
            if not self._left:
                self.close()
        data = b"".join(parts)
        return pack(data) if self._packed and data else data

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Adder:
    """Stores what a peer adds; one thread at a time uses it."""

    def __init__(self, store: ObjectStore, references: References, sender: str) -> None:
        self.held: set[Hash] = set()
        self.count = 0
        self.added = 0
        self._store = store
        self._references = references
        self._sender = sender
        self._incoming: Incoming | None = None
        self._error = ""
        self._left = 0

    def run(self, batch: Sequence[AddObjectRequest | bytes]) -> list[AddObjectResponse]:
        """Take requests and the bytes behind each; the replies to those that are complete."""
        replies: list[AddObjectResponse] = []
        for item in batch:
            if isinstance(item, AddObjectRequest):
                self._error = ""
                self._left = item.length
                self._incoming = self._store.incoming(
                    item.length, item.expected_hash, self._sender, self._hold
                )
                continue
            self._left -= len(item)
            reply = self._take(item)
            if not self._left:
                self.abort()
                self.count += 1
                self.added += reply.added
                replies.append(reply)
        return replies

    def abort(self) -> None:
        """Forget an object that is not complete."""
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None

    def _take(self, data: bytes) -> AddObjectResponse:
        """One piece; what is said of the object if it was the last one."""
        if self._incoming is None or self._error:
            return AddObjectResponse(error_string=self._error)
        try:
            self._incoming.write(data)
            if self._left:
                return AddObjectResponse()
            stored = self._incoming.finish()
        except SmallStackError as error:
            self._error = str(error)
            if isinstance(error, ObjectCorruptError):
                self._error = f"hash mismatch: expected: {error.hash}, computed: {error.found}"
            self._incoming.abort()
            _log.warning("AddObjects by %s: %s", self._sender, error)
            return AddObjectResponse(error_string=self._error)
        return AddObjectResponse(hash=Hash(stored.hash), added=stored.added)

    def _hold(self, hash_: Hash) -> None:
        if hash_ not in self.held:
            self.held.add(hash_)
            self._references.hold([hash_])


def _unknown(missing: Sequence[Hash]) -> str:
    if len(missing) == 1:
        return f"unknown object: {missing[0]}"
    return f"first of {len(missing)} unknown objects: {missing[0]}"
