"""TestBandwidth over a real connection, both ways, in every size of chunk."""

import time
from pathlib import Path

import pytest

from smallstack.client.objectserver import ObjectServerClient
from smallstack.imageserver.bandwidth import MAX_CHUNK
from smallstack.proto.objectserver import TestBandwidthRequest, TestBandwidthResponse
from smallstack.srpc.errors import AccessDeniedError, ConnectionClosedError
from tests.imageserver.conftest import Serve

SECOND = 10**9


async def test_from_the_server(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        size, took = await ObjectServerClient(client).test_bandwidth(1, 4000)
        assert took >= SECOND, "a shorter test would tell nothing"
        assert size > 4001
        assert size % 4001 == 0
        assert await ObjectServerClient(client).check_objects([bytes(64)]) == [0], "it goes on"


async def test_to_the_server_in_any_pieces(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        before = time.monotonic_ns()
        for chunk_size in (0, 1, 7, 4000, MAX_CHUNK):
            size, took = await ObjectServerClient(client).test_bandwidth(
                1, chunk_size, to_server=True
            )
            assert size % (chunk_size + 1) == 0
            assert 0 < took < time.monotonic_ns() - before
        request = TestBandwidthRequest(chunk_size=3, send_to_server=True)
        for cuts in range(1, 10):
            async with client.raw("ObjectServer.TestBandwidth") as conn:
                conn.encode(request)
                # Zeros in chunks are no ends; the pings behind the last chunk are not part of it.
                stream = b"\0\0\0\1" * 3 + b"\0\0\0\0" + b"\n\n"
                for at in range(0, len(stream), cuts):
                    conn.write(stream[at : at + cuts])
                    await conn.flush()
                await conn.decode(TestBandwidthResponse)
                assert await conn.read_exactly(2) == b"\n\n"


async def test_what_is_no_test(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        async with running.operator.connect() as client:
            with pytest.raises(ConnectionClosedError):
                await ObjectServerClient(client).test_bandwidth(SECOND, MAX_CHUNK + 1)
        async with running.as_user("user").connect() as client:
            with pytest.raises(AccessDeniedError):
                await ObjectServerClient(client).test_bandwidth(SECOND)
