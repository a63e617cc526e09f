"""The bytes behind a request: what a create that is given up leaves, and a client that dribbles."""

import asyncio
import os
from pathlib import Path
from typing import cast

import pytest

from smallstack.daemon.listener import Listener, bind
from smallstack.hypervisor.upload import Upload
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.client import dial
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import PeerStalledError
from smallstack.srpc.framing import PLAIN_GOB, PLAIN_JSON, Endpoint
from smallstack.srpc.server import Call, Server


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Cancelled while a thread opens the file, which takes as long as a FIFO has no reader."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    storing = asyncio.create_task(Upload(cast("Connection", None), 5).store(5, fifo))
    await asyncio.sleep(0)
    storing.cancel()
    await asyncio.sleep(0)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await asyncio.wait([storing])
        assert storing.cancelled()
        await asyncio.get_running_loop().shutdown_default_executor()
        found = [e for e in Path("/proc/self/fd").iterdir() if e.exists() and e.samefile(fifo)]
        assert [int(entry.name) for entry in found] == [reader]
    finally:
        os.close(reader)


@pytest.mark.parametrize("endpoint", [PLAIN_GOB, PLAIN_JSON], ids=["gob", "json"])
async def test_who_sends_byte_by_byte_is_given_up(endpoint: Endpoint) -> None:
    """Never silent for long, yet the upload takes for ever."""
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def create(call: Call) -> None:
        request = await call.conn.decode(proto.CreateVmRequest)
        try:
            await Upload(call.conn, request.image_data_size).drain()
        except BaseException as error:
            told.set_result(error)
            raise

    server = Server(insecure=True, stall_timeout=0.2)
    server.register("Hypervisor", {"CreateVm": create})
    listener = Listener(server)
    (sock,) = bind("127.0.0.1", 0)
    await listener.add(sock)
    address = f"127.0.0.1:{listener.addresses[0][1]}"
    try:
        async with (
            await dial(address, None, endpoints=[endpoint]) as client,
            client.raw("Hypervisor.CreateVm") as conn,
        ):
            conn.encode(proto.CreateVmRequest(image_data_size=1_000_000))
            while not told.done():
                conn.write(b"x")
                conn.push()
                await asyncio.wait((told,), timeout=0.02)
        assert isinstance(told.result(), PeerStalledError)
    finally:
        await listener.close(grace=1)
