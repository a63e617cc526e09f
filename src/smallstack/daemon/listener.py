"""One port for everything, told apart by the first byte of each connection.

::

    0x16  TLS ClientHello   TLS at once (client certificate optional), then the same choice inside
    'C'   CONNECT           the RPC server
    else  GET, HEAD, …      the pages

The sockets may have been made anywhere, in another network namespace for instance: a socket
belongs to the namespace it was made in. A connection that says nothing for 15 s, or does not
finish what it began to say, is closed.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from smallstack.daemon.errors import ListenError
from smallstack.identity.errors import CertificateFormatError
from smallstack.identity.peer import Peer
from smallstack.srpc import framing
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError, TlsError
from smallstack.srpc.identify import identify
from smallstack.srpc.server import HANDSHAKE_TIMEOUT, Server
from smallstack.srpc.stream import set_socket_options
from smallstack.telemetry.errors import describe

BACKLOG: Final = 1024
MAX_PAGE_CONNECTIONS: Final = 500
_TLS_HANDSHAKE: Final = 0x16
_CONNECT: Final = ord("C")

_log = logging.getLogger("smallstack.daemon")
PageFactory = Callable[[], asyncio.Protocol]


class Listener:
    """Accepts connections on any number of sockets and gives each to whom it is for."""

    def __init__(
        self,
        server: Server,
        pages: PageFactory | None = None,
        *,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        max_page_connections: int = MAX_PAGE_CONNECTIONS,
    ) -> None:
        """``pages`` makes the HTTP protocol of a connection (aiohttp's ``web.Server``)."""
        self.server = server
        self._pages = pages
        self._timeout = handshake_timeout
        self._max_pages = max_page_connections
        self._page_connections = 0
        self._listening: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, sock: socket.socket) -> None:
        """Accept on a bound socket from now on; it is the listener's from here."""
        sock.setblocking(False)
        set_socket_options(sock)
        loop = asyncio.get_running_loop()
        made = await loop.create_server(lambda: _Accepted(self), sock=sock, backlog=BACKLOG)
        self._listening.append(made)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of every socket."""
        return [s.getsockname()[:2] for server in self._listening for s in server.sockets]

    async def close(self, grace: float = 5.0) -> None:
        """Accept no more, let running calls end within ``grace`` seconds, close everything."""
        for server in self._listening:
            server.close()
        self._listening.clear()
        await self.server.close(grace)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def start(self, conn: Connection) -> None:
        """Serve a connection that was just accepted."""
        if not self.server.admit(conn):
            return
        task = asyncio.get_running_loop().create_task(self._serve(conn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, conn: Connection) -> None:
        try:
            peer: Peer | None = None
            first = await self._first_byte(conn)
            if first == _TLS_HANDSHAKE:
                credentials = await self.server.credentials()
                if credentials is not None:
                    await conn.start_tls(credentials.page_context, server_side=True)
                    peer = identify(conn, credentials)
                    first = await self._first_byte(conn)
            if first == _CONNECT:
                await self.server.serve(conn, peer)
            else:
                await self._page(conn, peer)
        except (TlsError, CertificateFormatError) as error:
            self.server.observer.rejected("tls")
            self.server.audit.refused("", conn.peer_name, str(error))
            conn.close()
        except (TimeoutError, ConnectionClosedError, PeerStalledError) as error:
            self.server.observer.rejected(
                "timeout" if isinstance(error, TimeoutError) else "closed"
            )
            conn.close()
        except asyncio.CancelledError:
            conn.abort()
            raise
        except Exception:
            _log.exception("%s: serving failed", conn.peer_name)
            conn.abort()
        finally:
            self.server.forget(conn)

    async def _first_byte(self, conn: Connection) -> int:
        if not conn.has_data():
            async with asyncio.timeout(self._timeout):
                if not await conn.more() and not conn.has_data():
                    raise ConnectionClosedError(peer=conn.peer_name, detail="it said nothing")
        return conn.peek()[0]

    async def _page(self, conn: Connection, peer: Peer | None) -> None:
        """Hand an HTTP request over once its whole head is here: slow senders end before."""
        try:
            async with asyncio.timeout(self._timeout):
                while framing.parse_request_head(conn.peek()) is None:
                    if not await conn.more():
                        raise ConnectionClosedError(peer=conn.peer_name, detail="before a request")
        except framing.FramingError as error:
            return await self._refuse(conn, 400, str(error))
        if self._pages is None:
            return await self._refuse(conn, 404)
        if self._page_connections >= self._max_pages:
            return await self._refuse(conn, 503)
        self._page_connections += 1
        try:
            self.server.forget(conn)
            known = peer or Peer(remote_host=conn.remote_host, remote_port=conn.remote_port)
            conn.hand_over(self._pages(), peer=known)
            await conn.wait_closed()
        finally:
            self._page_connections -= 1

    async def _refuse(self, conn: Connection, code: int, why: str = "") -> None:
        self.server.audit.refused("", conn.peer_name, why or framing.reason(code))
        self.server.observer.rejected(str(code))
        conn.write(framing.refusal(code))
        await conn.flush()
        conn.close()


class _Accepted(Connection):
    """A connection that gives itself to its listener."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.start(self)


def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets for a host, all its addresses; "" is every address, IPv6 where there is it.

    Raises ListenError.
    """
    shown = f"{host or '*'}:{port}"
    if host:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ListenError(address=shown, detail=describe(error)) from error
        places = [(family, where) for family, _, _, _, where in found]
    else:
        places = [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]
    sockets: list[socket.socket] = []
    try:
        for family, where in places:
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and not host:
                    continue
                raise
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(sockets) > 1:
                where = (where[0], sockets[0].getsockname()[1], *where[2:])  # noqa: PLW2901
            sock.bind(where)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(address=shown, detail=describe(error)) from error
    return sockets
