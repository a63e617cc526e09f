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
