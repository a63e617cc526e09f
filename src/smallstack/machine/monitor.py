"""The agent's session with QEMU's monitor (QMP), over a socket that is already connected."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping

from qemu.qmp import ConnectError, EventListener, QMPClient
from qemu.qmp import Runstate as QmpRunstate
from qemu.qmp.error import QMPError
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import ExecuteError, NegotiationError

from smallstack.machine.errors import MonitorError, MonitorLostError

# The library reports every connection that ends; here that is how machines end.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


class Monitor:
    """One QMP session; ``on_event(name, data)`` is called for every event, in order."""

    def __init__(self, name: str, on_event: Callable[[str, Mapping[str, object]], None]) -> None:
        self._name = name
        self._on_event = on_event
        self._client = QMPClient(name)
        self._client.register_listener(EventListener(event_filter=self._hear))
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket: socket.socket | None = None
        self._sending = asyncio.Lock()

    async def run(self, sock: socket.socket, on_up: Callable[[], None]) -> bool:
        """Greet, call ``on_up``, stay until the session ends, for whatever reason.

        Whether it was QEMU that hung up.
        """
        hung_up = False
        self._socket = sock.dup()  # descriptors go past the library, which knows no uvloop
        try:
            await self._client.connect(sock)
            if not self._up.done():
                self._up.set_result(None)
            on_up()
            while self._client.runstate is QmpRunstate.RUNNING:
                await self._client.runstate_changed()
        except (QMPError, OSError, EOFError) as error:
            hung_up = _is_the_end(error)
        except AssertionError:
            hung_up = True  # the library's word for a session that ends as it begins
        finally:
            hung_up = await self._hang_up() or hung_up
            self._socket.close()
            self._socket = None
        return hung_up

    async def up(self) -> None:
        """Wait for the session to begin; raises MonitorLostError if it never will."""
        await asyncio.shield(self._up)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run one command, waiting for the session to be up first.

        Raises MonitorError if QEMU refuses, MonitorLostError if there is no session any more.
        """
        await self.up()
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise MonitorError(name=self._name, command=command, detail=str(error)) from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLostError(name=self._name, detail=str(error)) from error

    async def answer(self, text: str) -> dict[str, object]:
        """Run one command that is written as QMP has it: what QEMU answers, also to nonsense.

        Raises MonitorLostError.
        """
        await self.up()
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _error(f"this is no JSON: {error}")
        if not isinstance(asked, dict) or not isinstance(asked.get("execute"), str):
            return _error('write an object with the command in "execute"')
        tag = {"id": asked["id"]} if "id" in asked else {}
        try:
            return {"return": await self._client.execute_msg(Message(asked)), **tag}
        except ExecuteError as error:
            return _error(str(error), error.error_class) | tag
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLostError(name=self._name, detail=str(error)) from error

    async def send_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a descriptor, by a name for the next command. Raises MonitorError,
        MonitorLostError."""
        await self.up()
        async with self._sending:
            if self._socket is None:
                raise MonitorLostError(name=self._name, detail="QEMU hung up")
            try:
                socket.send_fds(self._socket, [b" "], [descriptor])
            except OSError as error:
                raise MonitorLostError(name=self._name, detail=str(error)) from error
            await self.execute("getfd", {"fdname": name})

    def _hear(self, event: Message) -> bool:
        data = event.get("data", {})
        self._on_event(str(event["event"]), data if isinstance(data, Mapping) else {})
        return False  # nothing is queued: it has been heard

    def lost(self) -> None:
        """There will be no session (any more): whoever waits for one gets MonitorLostError."""
        if not self._up.done():
            self._up.set_exception(MonitorLostError(name=self._name, detail="QEMU hung up"))
            self._up.exception()  # seen: nobody has to be waiting for it

    async def _hang_up(self) -> bool:
        self.lost()
        if self._client.runstate is not QmpRunstate.IDLE:
            try:
                await self._client.disconnect()
            except (QMPError, OSError, EOFError) as error:
                return _is_the_end(error)
        return False


def _error(text: str, kind: str = "GenericError") -> dict[str, object]:
    return {"error": {"class": kind, "desc": text}}


def _is_the_end(error: Exception) -> bool:
    """Whether the other side has closed the connection."""
    while isinstance(error, (ConnectError, NegotiationError)):
        error = error.exc
    return isinstance(error, (EOFError, ConnectionError))
