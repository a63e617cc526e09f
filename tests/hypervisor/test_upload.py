"""What a create that is given up leaves of the bytes it was sent."""

import asyncio
import os
from pathlib import Path
from typing import cast

from smallstack.hypervisor.upload import Upload
from smallstack.srpc.connection import Connection


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
