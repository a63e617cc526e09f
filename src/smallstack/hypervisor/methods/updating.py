"""GetUpdates: the state of this Hypervisor as a stream."""

import asyncio
from collections.abc import Mapping
from typing import Self

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.errors import NoAccessError
from smallstack.hypervisor.methods.base import Methods, log
from smallstack.hypervisor.updates import Watch
from smallstack.proto.hypervisor import every as proto
from smallstack.srpc.connection import Connection
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError

MANY = 50
"""VMs in a message from which on it is not encoded on the loop."""


class Updating(Methods):
    """The method."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {"GetUpdates": self._updates}

    async def _updates(self, call: Call) -> None:
        leases = StreamLeases(self._agent)
        async with leases:
            with self._agent.updates.watch() as watch:
                await self._stream(call, watch, leases)
        call.conn.close()

    async def _stream(self, call: Call, watch: Watch, leases: "StreamLeases") -> None:
        talking = _Talk(call.conn)
        await talking.send(watch.everything())
        listening = asyncio.create_task(_listen(call, talking, leases))
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


class StreamLeases:
    """External leases that were registered on a stream: they go with it."""

    def __init__(self, agent: Agent) -> None:
        self._leases = agent.external_leases
        self._version = -1

    async def register(self, call: Call, request: proto.RegisterExternalLeasesRequest) -> None:
        """Such a request has no reply: what goes wrong is told to the log alone."""
        try:
            if not call.peer.have_method_access:
                raise NoAccessError
            self._version = await self._leases.replace(request.addresses, request.hostnames)
        except SmallStackError as error:
            log.warning("GetUpdates(%s): external leases: %s", call.peer, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leases.forget(self._version)


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


async def _listen(call: Call, talking: _Talk, leases: StreamLeases) -> None:
    """Answer what the client says: that it is still there, and sometimes more."""
    while True:
        request = await call.conn.decode(proto.GetUpdatesRequest, idle=True)
        if request.register_external_leases_request is not None:
            await leases.register(call, request.register_external_leases_request)
        await talking.send(proto.Update())
