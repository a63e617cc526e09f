"""TestBandwidth: chunks of bytes one way or the other, and how long they took.

A chunk is ``chunk_size`` bytes and one that tells whether another follows (1) or not (0); behind
the last comes the response. Who sends decides how long it takes, the server from 1 s to a minute.
"""

import asyncio
import os
import time
from typing import Final

from smallstack.proto.objectserver import TestBandwidthRequest, TestBandwidthResponse
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import RpcError
from smallstack.srpc.server import Call

MAX_CHUNK: Final = 65535
SHORTEST: Final = 1.0
LONGEST: Final = 60.0
PATIENCE: Final = 10.0
"""Seconds that a client may go on beyond the longest test."""
BATCH: Final = 64 * 1024
"""Bytes that are sent at a time, of chunks that are smaller."""


async def test_bandwidth(call: Call) -> None:
    """The method. Raises RpcError for what is no test."""
    conn = call.conn
    request = await conn.decode(TestBandwidthRequest)
    size = request.chunk_size
    if size > MAX_CHUNK:
        raise RpcError(f"ChunkSize: {size} exceeds {MAX_CHUNK}")
    begun = time.monotonic_ns()
    if request.send_to_server:
        try:
            async with asyncio.timeout(LONGEST + PATIENCE):
                await _receive(conn, size)
        except TimeoutError:
            raise RpcError(f"a test may take {LONGEST:g} s") from None
    else:
        await _send(conn, size, min(LONGEST, max(SHORTEST, request.duration / 1e9)))
    conn.encode(TestBandwidthResponse(server_duration=time.monotonic_ns() - begun))


async def _send(conn: Connection, size: int, seconds: float) -> None:
    chunk = os.urandom(size)
    batch = (chunk + b"\1") * max(1, BATCH // (size + 1))
    until = conn.time() + seconds
    while conn.time() < until:
        conn.write(batch)
        await conn.flush()
    conn.write(chunk + b"\0")
    await conn.flush()


async def _receive(conn: Connection, size: int) -> None:
    """Take chunks up to the last one, and nothing behind it."""
    length = size + 1
    at = 0
    while True:
        data = await conn.read_some()
        if not data:
            await conn.read_exactly(length)  # raises
        # Of a chunk that came in part what is left, then whole ones: where their last bytes are.
        last = data[length - at - 1 :: length].find(0)
        if last >= 0:
            conn.unread(data[length - at + last * length :])
            return
        at = (at + len(data)) % length
