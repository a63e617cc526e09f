"""What all methods share: finding the caller's VM, and telling what went wrong."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO

from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.errors import BlockedError, RequestError
from smallstack.hypervisor.vm import Vm
from smallstack.identity.peer import Peer
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError, describe

log = logging.getLogger("smallstack.hypervisor")
NANOSECONDS = 1_000_000_000
MAX_WAIT = 3600 * NANOSECONDS
"""Longest wait for a guest, whatever a client asks for."""
CHUNK = 256 * 1024
Stream = Callable[[], Awaitable[None]]
"""What a raw method does once it has found that it can."""


class Methods:
    """Methods of one topic, over one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, for `Server.register`."""
        raise NotImplementedError

    def _mine(self, call: Call, ip: str, token: bytes = b"", *, write: bool = True) -> Vm:
        """The VM, if the caller may have it; with ``write``, to change it.

        Raises NoVmError, NoAccessError, BlockedError.
        """
        vm = self._agent.vm(ip)
        vm.check_access(call.peer, token)
        if write and vm.blocked:
            raise BlockedError
        return vm


def answering(work: Callable[..., Awaitable[Any]]) -> Handler:
    """A request/reply handler that tells what goes wrong in the reply's ``error``."""

    @wraps(work)
    async def handler(call: Call, request: Any) -> Any:
        try:
            return await work(call, request)
        except (ConnectionClosedError, PeerStalledError):
            raise
        except Exception as error:
            return refusal(call, error)

    return handler


def opening(work: Callable[..., Awaitable[Stream]]) -> Handler:
    """A raw handler that tells in its first message what keeps it from beginning.

    ``work`` returns what sends that message and goes on; what goes wrong there closes the
    connection.
    """

    @wraps(work)
    async def handler(call: Call) -> None:
        assert call.method.request is not None
        request = await call.conn.decode(call.method.request)
        try:
            stream = await work(call, request)
        except (ConnectionClosedError, PeerStalledError):
            raise
        except Exception as error:
            call.conn.encode(refusal(call, error))
            await call.conn.flush()
            return
        await stream()

    return handler


def refusal(call: Call, error: Exception) -> Any:
    """The method's reply that tells of an error and nothing else."""
    call.failed(error)
    response: Any = call.method.response
    return response(error=told(error, call.method.short_name, call.peer))


def told(error: Exception, method: str, peer: Peer) -> str:
    """What the caller is told; what nobody foresaw goes into the log with its traceback."""
    if isinstance(error, (SmallStackError, OSError)):
        text = describe(error)
        log.info("%s(%s) failed: %s", method, peer, text)
        return text
    log.error("%s(%s) failed", method, peer, exc_info=error)
    return f"internal error ({type(error).__name__}): the agent's log has more"


async def open_file(path: Path) -> tuple[BinaryIO, int]:
    """A file for `send_file`, which closes it, and its bytes. Raises OSError."""

    def work() -> tuple[BinaryIO, int]:
        file = path.open("rb")
        return file, file.seek(0, 2)

    return await asyncio.to_thread(work)


async def send_file(conn: Connection, file: BinaryIO, length: int) -> None:
    """Send the first ``length`` bytes of a file and close it. Raises RequestError if it has
    become shorter: then nobody knows where the next call would begin."""
    with file:
        file.seek(0)
        while length:
            data = await asyncio.to_thread(file.read, min(length, CHUNK))
            if not data:
                raise RequestError(detail=f"{file.name} got shorter while it was read")
            conn.write(data)
            await conn.flush()
            length -= len(data)


async def pass_on(conn: Connection, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand on what a client sends, until it goes."""
    with suppress(ConnectionClosedError):
        while data := await conn.read_some():
            await write(data)


async def first_of(reading: Awaitable[bytes], other: "asyncio.Task[None]") -> bytes:
    """What is read; b"" when the other task ends first."""
    task = asyncio.ensure_future(reading)
    await asyncio.wait((task, other), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return b""
