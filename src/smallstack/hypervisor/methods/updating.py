"""GetUpdates: the state of this Hypervisor as a stream."""

import asyncio
from collections.abc import Mapping

from smallstack.hypervisor.methods.base import Methods
from smallstack.hypervisor.updates import Watch
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.connection import Connection
from smallstack.srpc.server import Call, Handler

MANY = 50
"""VMs in a message from which on it is not encoded on the loop."""


class Updating(Methods):
    """The method."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {"GetUpdates": self._updates}

    async def _updates(self, call: Call) -> None:
        with self._agent.updates.watch() as watch:
            talking = _Talk(call.conn)
            await talking.send(watch.everything())
            listening = asyncio.create_task(self._listen(call, talking))
            telling = asyncio.create_task(_tell(watch, talking))
            try:
                await asyncio.wait((listening, telling), return_when=asyncio.FIRST_COMPLETED)
                for task in (listening, telling):
                    if task.done():
                        task.result()
            finally:
                for task in (listening, telling):
                    task.cancel()
                await asyncio.wait((listening, telling))
        call.conn.close()

    async def _listen(self, call: Call, talking: "_Talk") -> None:
        """Answer what the client says: that it is still there."""
        while True:
            await call.conn.decode(proto.GetUpdatesRequest, idle=True)
            await talking.send(proto.Update())


class _Talk:
    """The sending side of a stream: one message at a time."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._lock = asyncio.Lock()

    async def send(self, update: proto.Update) -> None:
        """Returns when it is on its way."""
        async with self._lock:
            if len(update.vms) > MANY:
                await self._conn.encode_in_thread(update)
            else:
                self._conn.encode(update)
            await self._conn.flush()


async def _tell(watch: Watch, talking: _Talk) -> None:
    while (update := await watch.next()) is not None:
        await talking.send(update)
