"""Who sends or takes something large too slowly is given up; only what is waited for counts."""

import asyncio
import socket
from contextlib import suppress
from typing import cast

import pytest

from smallstack.srpc import patience
from smallstack.srpc.errors import PeerStalledError
from smallstack.srpc.pace import Pace
from smallstack.srpc.patience import SLOWEST, Patience
from smallstack.srpc.server import Call
from smallstack.srpc.stream import Stream

from .conftest import Serve
from .test_hostile import CONNECT


class Slow:
    """A stream whose peer takes or sends ``piece`` bytes in 30 s of the test's own clock."""

    def __init__(self, piece: int) -> None:
        self.now = 0.0
        self._piece = piece
        self._patience = Patience(60)

    def time(self) -> float:
        return self.now

    async def read_some(self, limit: int, *, stall: bool) -> bytes:
        assert stall
        self.now += 30
        return bytes(min(limit, self._piece))

    def write(self, data: bytes) -> None:
        assert len(data) == self._piece

    async def flush(self) -> None:
        self.now += 30

    def hurry(self, begun: float, size: int) -> None:
        if self.now - begun > self._patience.seconds + size / SLOWEST:
            raise PeerStalledError(peer="it", seconds=60)


async def turns(pace: Pace, stream: Slow, piece: int, writing: bool) -> int:
    """How many of at most 100 pieces go, between which there is work of our own."""
    for done in range(100):
        try:
            if writing:
                await pace.write(bytes(piece))
            else:
                await pace.read(piece)
        except PeerStalledError:
            return done
        stream.now += 1000
    return 100


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize(
    ("piece", "count"), [(1, 2), (15 * SLOWEST, 4), (30 * SLOWEST, 100), (40 * SLOWEST, 100)]
)
async def test_only_waiting_counts(piece: int, count: int, writing: bool) -> None:
    stream = Slow(piece)
    assert await turns(Pace(cast("Stream", stream)), stream, piece, writing) == count


async def test_who_takes_too_little_at_a_time_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never silent for as long as one wait lasts, and yet one flush takes for ever."""
    monkeypatch.setattr(patience, "SLOWEST", 1 << 20)
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def send(call: Call) -> None:
        sock = call.conn._transport.get_extra_info("socket")  # type: ignore[union-attr]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        call.conn.write(b"x" * 20_000_000)
        try:
            await call.conn.flush()
        except BaseException as error:
            told.set_result(error)
            raise
        told.set_result(EOFError())

    async with serve(stall_timeout=0.5) as running:
        running.server.register("Hypervisor", {"GetUpdates": send})
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            sock.connect(("127.0.0.1", running.port))
            sock.sendall(CONNECT + b"Hypervisor.GetUpdates\n")
            while not told.done():
                await asyncio.wait((told,), timeout=0.02)
                with suppress(BlockingIOError, ConnectionError):
                    sock.recv(4096, socket.MSG_DONTWAIT)
        assert isinstance(told.result(), PeerStalledError)
        await running.server.wait_empty()
