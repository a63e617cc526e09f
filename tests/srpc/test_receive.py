"""Many bytes from a socket at once, in a thread that a slow sender does not keep."""

import asyncio
import socket
import threading
from contextlib import suppress

from smallstack.srpc.receive import Receiver

LIMIT = 1 << 20


async def test_a_byte_at_a_time_keeps_no_thread() -> None:
    """Each of them comes in time, and there is no end of them."""
    ours, theirs = socket.socketpair()
    enough = threading.Event()

    def dribble() -> None:
        with suppress(OSError):
            while not enough.is_set():
                theirs.send(b"x")

    with ours, theirs:
        dribbling = threading.Thread(target=dribble)
        dribbling.start()
        try:
            data = await asyncio.to_thread(Receiver().receive, ours.fileno(), LIMIT, 10_000)
        finally:
            enough.set()
            ours.shutdown(socket.SHUT_RDWR)  # wakes one that waits for room
            dribbling.join()
    assert data is not None
    assert 0 < len(data) < LIMIT


def test_memory_is_used_again_once_nobody_has_a_view_of_it() -> None:
    receiver = Receiver()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"one")
        one = receiver.receive(ours.fileno(), LIMIT, 0)
        theirs.send(b"two")
        two = receiver.receive(ours.fileno(), LIMIT, 0)
        assert (one, two) == (b"one", b"two")
        held = receiver.held
        part = memoryview(one or b"")[1:]
        for number in range(100):
            data = number.to_bytes(4) * 5000
            theirs.send(data)
            assert receiver.receive(ours.fileno(), LIMIT, 0) == data
        assert receiver.held == held
        views = (one or b"", two or b"", part)
        assert [bytes(view) for view in views] == [b"one", b"two", b"ne"], "each is as it was"
        assert receiver.receive(ours.fileno(), LIMIT, 0) is None
        theirs.close()
        assert receiver.receive(ours.fileno(), LIMIT, 0) == b""
    receiver.close()
    assert bytes(part) == b"ne"


def test_more_than_a_block_is_held_as_long_as_it_is_looked_at() -> None:
    receiver = Receiver()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kept = []
        sent = 0
        while receiver.held < 40 << 20:
            data = sent.to_bytes(8) * 16_000
            theirs.send(data)
            kept.append((receiver.receive(ours.fileno(), LIMIT, 0), data))
            sent += 1
        assert all(got == data for got, data in kept)
        held = receiver.held
        kept.clear()
        for number in range(sent):
            data = number.to_bytes(8) * 16_000
            theirs.send(data)
            assert receiver.receive(ours.fileno(), LIMIT, 0) == data
        assert receiver.held == held
    receiver.close()
