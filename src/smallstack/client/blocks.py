"""Receiving a volume into a file that may hold an older state of it; see `proto.rsync`."""

from __future__ import annotations

import asyncio
import hashlib
import os

from smallstack.client.errors import ServiceError
from smallstack.client.service import receive
from smallstack.proto.rsync import Block, GetBlocksRequest
from smallstack.srpc.connection import Connection

MIN_ORDER, MAX_ORDER = 9, 32
CHUNK = 1 << 20


def block_order(size: int) -> int:
    """The power of two of the blocks in which a volume of ``size`` bytes is compared."""
    return min(max((size.bit_length() - 1) // 2, MIN_ORDER), MAX_ORDER)


async def receive_blocks(conn: Connection, fd: int, size: int) -> int:
    """Make the open file what the volume is, ``size`` bytes; how many of them came.

    Raises ServiceError, ConnectionClosedError, OSError.
    """
    order = block_order(size)
    have = min(os.fstat(fd).st_size, size) >> order
    conn.encode(GetBlocksRequest(block_order=order, num_blocks=have))
    await conn.flush()
    sending = asyncio.create_task(_send_hashes(conn, fd, order, have))
    received = 0
    try:
        while True:
            block = await conn.decode(Block)
            if block.error:
                raise ServiceError(text=block.error)
            if not block.size:
                break
            offset = block.index << order
            if offset + block.size > size:
                raise ServiceError(text=f"a block up to byte {offset + block.size} of {size}")
            async for data in receive(conn, block.size):
                await asyncio.to_thread(_write, fd, data, offset)
                offset += len(data)
            received += block.size
        await sending
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    await asyncio.to_thread(os.ftruncate, fd, size)
    return received


async def _send_hashes(conn: Connection, fd: int, order: int, count: int) -> None:
    for index in range(count):
        conn.write(await asyncio.to_thread(_digest, fd, index << order, 1 << order))
        await conn.flush()


def _digest(fd: int, offset: int, size: int) -> bytes:
    hasher = hashlib.sha512()
    end = offset + size
    while offset < end:
        data = os.pread(fd, min(CHUNK, end - offset), offset)
        if not data:
            raise OSError("the file got shorter while it was read")
        hasher.update(data)
        offset += len(data)
    return hasher.digest()


def _write(fd: int, data: bytes, offset: int) -> None:
    """Zeros where nothing has been stay holes."""
    view = memoryview(data)
    if offset >= os.fstat(fd).st_size and data.count(0) == len(data):
        return
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
