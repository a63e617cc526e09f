"""Sending a volume to a receiver that has some of it: only what differs; see `proto.rsync`.

The receiver may send all its hashes before it reads anything. So they are read beside the sending,
and kept: their number is bounded by the square root of the volume's size, as receivers choose it.
"""

import asyncio
import hashlib
from collections import deque
from typing import Final

from smallstack.proto.rsync import HASH_BYTES, Block, GetBlocksRequest
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import RemoteProtocolError
from smallstack.volumes.qcow2.chain import Disk

MIN_ORDER, MAX_ORDER = 9, 32
CHUNK: Final = 1 << 20
_AT_ONCE: Final = 1024
"""Hashes read in one go."""


def check_request(request: GetBlocksRequest, size: int) -> None:
    """Raises RemoteProtocolError for blocks that a volume of ``size`` bytes does not have, or that
    are too many for anybody's memory."""
    order, blocks = request.block_order, request.num_blocks
    if blocks and not MIN_ORDER <= order <= MAX_ORDER:
        raise RemoteProtocolError(what=f"blocks of 2^{order} bytes: from 2^9 to 2^32 there are")
    if blocks << order > size:
        raise RemoteProtocolError(what=f"{blocks} blocks of 2^{order} bytes: the disk has {size}")
    if blocks.bit_length() > size.bit_length() // 2 + 3:
        raise RemoteProtocolError(what=f"{blocks} blocks of 2^{order} bytes: ask for larger ones")


class BlockSender:
    """Sends one volume over one connection."""

    def __init__(self, conn: Connection, disk: Disk) -> None:
        self._conn = conn
        self._disk = disk
        self._hashes: deque[bytes] = deque()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """The whole conversation. Raises RemoteProtocolError, ConnectionClosedError, DiskError,
        OSError."""
        request = await self._conn.decode(GetBlocksRequest)
        size = self._disk.size
        try:
            check_request(request, size)
        except RemoteProtocolError as error:
            self._conn.encode(Block(error=str(error)))
            await self._conn.flush()
            raise
        block = 1 << request.block_order
        reading = asyncio.create_task(self._read_hashes(request.num_blocks))
        try:
            for index in range(request.num_blocks):
                wanted = await self._next_hash(reading)
                offset = index * block
                if await asyncio.to_thread(self._digest, offset, block) != wanted:
                    self._conn.encode(Block(index=index, size=block))
                    await self._send(offset, block)
            await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        rest = size - request.num_blocks * block if request.num_blocks else size
        self._conn.encode(Block(index=request.num_blocks, size=rest))
        if rest:
            await self._send(size - rest, rest)
            self._conn.encode(Block())
        await self._conn.flush()

    async def _read_hashes(self, count: int) -> None:
        try:
            while count:
                take = min(count, _AT_ONCE)
                data = await self._conn.read_exactly(take * HASH_BYTES)
                count -= take
                self._hashes.extend(
                    data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)
                )
                self._news.set()
        finally:
            self._news.set()

    async def _next_hash(self, reading: "asyncio.Task[None]") -> bytes:
        while not self._hashes:
            if reading.done():
                reading.result()
            self._news.clear()
            await self._news.wait()
        return self._hashes.popleft()

    def _digest(self, offset: int, size: int) -> bytes:
        hasher = hashlib.sha512()
        end = offset + size
        while offset < end:
            data = self._disk.view.read(offset, min(CHUNK, end - offset))
            hasher.update(data)
            offset += len(data)
        return hasher.digest()

    async def _send(self, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            count = min(CHUNK, end - offset)
            data = await asyncio.to_thread(self._disk.view.read, offset, count)
            self._conn.write(data)
            await self._conn.flush()
            offset += len(data)
