"""Moving to a Unix socket, the serving side of ``.LocalUpgradeToUnix``.

::

    TCP   client ── {ClientCookie} ───────────►   a ticket: the server's cookie, for some seconds
          client ◄─ {ServerCookie, path} ──────
    Unix  client ── connects, that cookie ────►   good once
          client ◄─ one byte ──────────────────
    TCP   client ── {SentServerCookie: true} ─►
          client ◄─ {Error: ""} ───────────────
    Unix  client ◄─ its own cookie ────────────   calls go on here, in clear text

Who calls is who TCP said it is: nobody else has seen the cookie, so the socket's own credentials
have nothing to add (a user may well reach the daemon through another one's tunnel). Nobody else on
the machine can read a Unix socket, which is why it needs no TLS. Only for connections whose two
ends have one address; abstract sockets belong to the network namespace they were made in.
"""

import asyncio
import logging
import os
import secrets
import socket
from typing import Final

from smallstack.proto.srpc import (
    LocalUpgradeToUnixRequestOne,
    LocalUpgradeToUnixRequestTwo,
    LocalUpgradeToUnixResponseOne,
    LocalUpgradeToUnixResponseTwo,
)
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.telemetry.errors import describe

COOKIE_SIZE: Final = 8
MAX_ARRIVALS: Final = 100
"""Connections to the Unix socket that have not shown a cookie; a further one ends the oldest."""

_log = logging.getLogger("smallstack.srpc")
_SEEN: Final = b"\0"


class LocalDoor:
    """The Unix socket of a server, made at the first use, and who is expected there."""

    def __init__(self, timeout: float) -> None:
        """``timeout``, seconds: to show a cookie, and for the whole of an upgrade."""
        self._timeout = timeout
        self._path = ""
        self._listening: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._tickets: dict[bytes, asyncio.Future[Connection]] = {}
        self._arrivals: dict[Connection, asyncio.Task[None]] = {}

    async def upgrade(self, conn: Connection) -> Connection | None:
        """Answer the call that ``conn`` has just made; the connection that goes on instead of it.

        None when the client was told why not, and goes on as it is. Raises what reading does.
        """
        request = await conn.decode(LocalUpgradeToUnixRequestOne)
        refusal = await self._refusal(conn, request)
        if refusal:
            conn.encode(LocalUpgradeToUnixResponseOne(error=refusal))
            return None
        cookie = secrets.token_bytes(COOKIE_SIZE)
        ticket: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._tickets[cookie] = ticket
        moved = None
        try:
            conn.encode(
                LocalUpgradeToUnixResponseOne(server_cookie=cookie, socket_pathname=self._path)
            )
            await conn.flush()
            async with asyncio.timeout(self._timeout):
                answer = await conn.decode(LocalUpgradeToUnixRequestTwo)
            if not answer.sent_server_cookie or not ticket.done():
                conn.encode(LocalUpgradeToUnixResponseTwo(error="the cookie was not sent"))
                return None
            conn.encode(LocalUpgradeToUnixResponseTwo())
            await conn.flush()
            arrived = ticket.result()
            arrived.continues(conn)
            arrived.write(request.client_cookie)
            await arrived.flush()
            moved = arrived
            return moved
        except TimeoutError:
            conn.abort()
            raise PeerStalledError(peer=conn.peer_name, seconds=self._timeout) from None
        finally:
            self._tickets.pop(cookie, None)
            if ticket.done() and moved is None:
                ticket.result().abort()

    def close(self) -> None:
        """Take no more connections."""
        if self._listening is not None:
            self._listening.close()
        for task in list(self._arrivals.values()):
            task.cancel()

    def arrived(self, conn: Connection) -> None:
        """Somebody has connected to the socket."""
        if len(self._arrivals) >= MAX_ARRIVALS:
            next(iter(self._arrivals.values())).cancel()
        task = asyncio.get_running_loop().create_task(self._greet(conn))
        self._arrivals[conn] = task
        task.add_done_callback(lambda _: self._arrivals.pop(conn, None))

    async def _greet(self, conn: Connection) -> None:
        """Read a cookie and give the connection to whom it belongs."""
        ticket = None
        try:
            async with asyncio.timeout(self._timeout):
                cookie = await conn.read_exactly(COOKIE_SIZE)
            ticket = self._tickets.pop(cookie, None)
            if ticket is None:
                _log.info("a connection to %s showed no cookie of ours", self._path)
                return
            conn.write(_SEEN)
            await conn.flush()
            ticket.set_result(conn)
        except (TimeoutError, ConnectionClosedError) as error:
            _log.debug("%s: %s", self._path, error)
        finally:
            if ticket is None or not ticket.done():
                conn.abort()

    async def _refusal(self, conn: Connection, request: LocalUpgradeToUnixRequestOne) -> str:
        """Why this connection cannot move, "" when it can; the socket then listens."""
        if not conn.is_local:
            return "the connection is not a local one"
        if len(request.client_cookie) != COOKIE_SIZE:
            return f"the cookie has {len(request.client_cookie)} bytes, not {COOKIE_SIZE}"
        try:
            async with self._opening:
                if self._listening is None:
                    await self._listen()
        except OSError as error:
            _log.warning("no Unix socket for local connections: %s", describe(error))
            return "the server has no Unix socket"
        return ""

    async def _listen(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            name = f"SRPC.{os.getpid()}"
            try:
                sock.bind(f"\0{name}")
            except OSError:
                # Anybody may have taken it, to keep us from it: clients are told the name.
                name = f"{name}.{secrets.token_hex(8)}"
                sock.bind(f"\0{name}")
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            self._listening = await loop.create_unix_server(lambda: _Arrival(self), sock=sock)
            self._path = f"@{name}"
        except BaseException:
            sock.close()
            raise


class _Arrival(Connection):
    """A connection that shows itself to the door."""

    __slots__ = ("_door",)

    def __init__(self, door: LocalDoor) -> None:
        super().__init__()
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._door.arrived(self)
