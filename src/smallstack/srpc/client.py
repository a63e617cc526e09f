"""The calling side: dial, then one call at a time.

With certificates the TLS endpoints are tried, gob before JSON; without, the plain ones. With more
than one certificate, the next is shown to a server that does not accept the one before. A 404
leads to the next endpoint, anything else ends the attempt; each attempt is a connection of its
own. A server that answers CONNECT with something that is not HTTP may do TLS on every connection:
then TLS comes first and CONNECT inside. There is no fall-back from TLS to plain unless asked for.

Imports nothing that a short-lived tool could do without: its start is part of every create.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

from smallstack.identity.credentials import ClientCredentials
from smallstack.identity.renewal import Renewable
from smallstack.srpc import framing
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import (
    AccessDeniedError,
    BadCertificateError,
    CallError,
    CertificateRequiredError,
    ConnectError,
    ConnectionClosedError,
    NoEndpointError,
    RemoteProtocolError,
    TlsError,
)
from smallstack.srpc.stream import set_socket_options
from smallstack.telemetry.errors import SmallStackError, describe

T = TypeVar("T")
Address = str | tuple[str, int]
CONNECT_TIMEOUT: Final = 15.0
"""Seconds for name, TCP, CONNECT and TLS together."""

_CERTIFICATE_ALERTS: Final = (
    "certificate required",
    "bad certificate",
    "decrypt error",  # signed by another authority of the same name
    "unknown ca",
    "certificate unknown",
    "unsupported certificate",
    "certificate expired",
    "certificate revoked",
    "handshake failure",
)


class Client:
    """One connection to a server. Calls wait for each other."""

    def __init__(self, conn: Connection, address: str, connect_started_ns: int) -> None:
        self.conn = conn
        self.address = address
        self.connect_started_ns = connect_started_ns
        """When the TCP connect began, by ``time.monotonic_ns``."""
        self._lock = asyncio.Lock()

    async def request(self, method: str, request: Any, response_type: type[T]) -> T:
        """One request/reply call.

        Raises CallError with the server's error line (AccessDeniedError when it refuses), and
        what `Connection` raises. The connection serves on after a CallError only.
        """
        async with self.raw(method) as conn:
            conn.encode(request)
            await conn.flush()
            return await self.reply(conn, method, response_type)

    async def reply(self, conn: Connection, method: str, response_type: type[T]) -> T:
        """The error line and the value that end a request/reply call; see `request`."""
        line = await conn.read_line(framing.MAX_REPLY_LINE)
        if line:
            raise CallError(method=method, text=line.decode(errors="replace"))
        return await conn.decode(response_type)

    @asynccontextmanager
    async def raw(self, method: str) -> AsyncIterator[Connection]:
        """The connection while one call has it, after the server accepted the method.

        Leaving the block in the middle of a call, by an exception, closes the connection.
        Raises CallError, AccessDeniedError when the server refuses.
        """
        async with self._lock:
            conn = self.conn
            try:
                await self._start(conn, method)
                yield conn
                await conn.flush()
            except CallError:
                raise
            except ConnectionClosedError as error:
                conn.abort()
                self._explain(error)
                raise
            except BaseException:
                conn.abort()
                raise

    async def ping(self) -> None:
        """One empty line there and back."""
        async with self.raw(""):
            pass

    async def move(self) -> None:
        """Go on over the server's Unix socket if it offers one; raises what calls do."""
        from smallstack.srpc import local_client  # few tools need it

        async with self._lock:
            before = self.conn
            try:
                moved = await local_client.move(before)
            except ConnectionClosedError as error:
                before.abort()
                self._explain(error)
                raise
            except BaseException:
                before.abort()
                raise
            if moved is not None:
                self.conn = moved
                before.close()

    async def close(self) -> None:
        """Close the connection and wait until it is.

        What a call that is still going on has queued is dropped: the peer may never take it.
        """
        if self._lock.locked():
            self.conn.abort()
        else:
            self.conn.close()
        await self.conn.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self, conn: Connection, method: str) -> None:
        conn.begin_call()
        conn.write(method.encode() + b"\n")
        await conn.flush()
        line = await conn.read_line(framing.MAX_REPLY_LINE)
        if line:
            text = line.decode(errors="replace")
            kind = AccessDeniedError if text == framing.ACCESS_DENIED else CallError
            raise kind(method=method, text=text)

    def _explain(self, error: ConnectionClosedError) -> None:
        """In TLS 1.3 the server's verdict on our certificate comes after our handshake ended."""
        detail = str(error.fields.get("detail", ""))
        if any(alert in detail for alert in _CERTIFICATE_ALERTS):
            raise _tls_failure(self.address, detail) from error


async def dial(
    address: Address,
    credentials: ClientCredentials | Renewable[ClientCredentials] | None,
    timeout: float = CONNECT_TIMEOUT,
    *,
    plain_fallback: bool = False,
    use_method_powers: bool = True,
    endpoints: Sequence[framing.Endpoint] | None = None,
    move_local: bool = False,
) -> Client:
    """Connect to ``host:port``, as who ``credentials`` say, or in plain text when they are None.

    ``plain_fallback`` also tries the plain endpoints when a server has no TLS; ``endpoints``
    replaces the choice altogether. ``use_method_powers=False`` asks to be treated as a user
    without them. ``move_local`` goes over to a Unix socket, in clear text, when the server is on
    this machine: for many megabytes or many calls. Raises ConnectError or one of its kinds, and
    what renewing the credentials does.
    """
    host, port = split_address(address)
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if endpoints is None:
        endpoints = framing.PLAIN if credentials is None else framing.SECURE
        if credentials is not None and plain_fallback:
            endpoints = (*framing.SECURE, *framing.PLAIN)
    if isinstance(credentials, Renewable):
        credentials = await credentials.fresh()
    attempt = _Attempt(shown, host, port, credentials, use_method_powers)
    try:
        async with asyncio.timeout(timeout):
            client = await attempt.as_somebody(endpoints)
            if move_local and client.conn.is_local:
                attempt.phase = "the move to a Unix socket"
                await client.move()
            return client
    except (ConnectionClosedError, RemoteProtocolError) as error:
        raise ConnectError(address=shown, detail=f"{error} in {attempt.phase}") from error
    except TimeoutError:
        detail = f"no answer to {attempt.phase} in {timeout:.0f} s"
        raise ConnectError(address=shown, detail=detail) from None


def split_address(address: Address) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``name*suffix:port`` (``*…`` is dropped).

    Raises ConnectError when there is no port.
    """
    if not isinstance(address, str):
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConnectError(address=repr(address), detail="write host:port")
    return host.partition("*")[0].removeprefix("[").removesuffix("]"), int(port)


class _Attempt:
    """The connections one dial makes, until one is as it should be."""

    def __init__(
        self,
        shown: str,
        host: str,
        port: int,
        credentials: ClientCredentials | None,
        use_method_powers: bool,
    ) -> None:
        self.shown = shown
        self.host = host
        self.port = port
        self.credentials = credentials
        self.use_method_powers = use_method_powers
        self.phase = "the TCP connection"

    async def as_somebody(self, endpoints: Sequence[framing.Endpoint]) -> Client:
        """As who the credentials say; with each of them, if the server does not take the first."""
        refusal: BadCertificateError | None = None
        several = self.credentials is not None and bool(self.credentials.others)
        while True:
            try:
                client = await self.any_of(endpoints)
                if several:
                    await client.ping()  # in TLS 1.3 the verdict comes with the first answer
                return client
            except BadCertificateError as error:
                refusal = refusal or error
                self.credentials = self.credentials and self.credentials.next()
                if self.credentials is None:
                    raise refusal from None

    async def any_of(self, endpoints: Sequence[framing.Endpoint]) -> Client:
        try:
            return await self._each(endpoints, tls_first=False)
        except framing.FramingError as error:
            secure = [endpoint for endpoint in endpoints if endpoint.tls]
            if not secure:
                raise ConnectError(address=self.shown, detail=str(error)) from error
        try:
            return await self._each(secure, tls_first=True)
        except framing.FramingError as error:
            raise ConnectError(address=self.shown, detail=str(error)) from error

    async def _each(self, endpoints: Sequence[framing.Endpoint], tls_first: bool) -> Client:
        for endpoint in endpoints:
            started = time.monotonic_ns()
            conn = await self._connect()
            opened = False
            try:
                opened = await self._open(conn, endpoint, tls_first)
            except ConnectionClosedError as error:
                detail = f"{error.fields['detail']} in {self.phase}"
                raise ConnectError(address=self.shown, detail=detail) from error
            except TlsError as error:
                raise _tls_failure(self.shown, str(error.fields["detail"])) from error
            finally:
                if not opened:
                    conn.abort()
            if opened:
                return Client(conn, self.shown, started)
        secure = any(endpoint.tls for endpoint in endpoints)
        detail = "is TLS set up on it?" if secure else "does it serve SRPC in plain text?"
        raise NoEndpointError(address=self.shown, detail=detail)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for family, where in await self._addresses():
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                set_socket_options(sock)
                await loop.sock_connect(sock, where)
                _, conn = await loop.create_connection(Connection, sock=sock)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return conn
        detail = "the name has no address"
        if failure is not None:  # the loop's own text hides the system's
            detail = os.strerror(failure.errno) if failure.errno else describe(failure)
        raise ConnectError(address=self.shown, detail=detail) from failure

    async def _addresses(self) -> list[tuple[int, tuple[Any, ...]]]:
        """Families and addresses to try; literal ones and ``localhost`` without a look-up."""
        if self.host == "localhost":
            return [
                (socket.AF_INET, ("127.0.0.1", self.port)),
                (socket.AF_INET6, ("::1", self.port)),
            ]
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, self.host)
            except OSError:
                continue
            return [(family, (self.host, self.port))]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectError(address=self.shown, detail=describe(error)) from error
        return [(family, where) for family, _, _, _, where in found]

    async def _open(self, conn: Connection, endpoint: framing.Endpoint, tls_first: bool) -> bool:
        """CONNECT, with TLS before or behind it; False on a 404."""
        if tls_first:
            await self._tls(conn)
        self.phase = "CONNECT"
        conn.write(framing.connect_request(endpoint, self.use_method_powers))
        await conn.flush()
        while (head := framing.parse_reply_head(conn.peek())) is None:
            if not await conn.more():
                raise ConnectionClosedError(peer=self.shown, detail="it closed the connection")
        conn.skip(head.size)
        if head.code == 404:
            return False
        if head.code == 401:
            raise BadCertificateError(address=self.shown, detail=head.status)
        if head.code == 405:
            raise CertificateRequiredError(address=self.shown, detail=head.status)
        if head.status != framing.CONNECTED_STATUS:
            detail = f"unexpected answer to CONNECT: {head.status}"
            raise ConnectError(address=self.shown, detail=detail)
        if endpoint.tls and not tls_first:
            await self._tls(conn)
        conn.json = endpoint.json
        return True

    async def _tls(self, conn: Connection) -> None:
        self.phase = "TLS"
        if self.credentials is None:
            raise ConnectError(address=self.shown, detail="TLS needs a certificate")
        await conn.start_tls(self.credentials.context, server_side=False)


def _tls_failure(address: str, detail: str) -> SmallStackError:
    if "certificate required" in detail or "handshake failure" in detail:
        return CertificateRequiredError(address=address, detail=detail)
    if any(alert in detail for alert in _CERTIFICATE_ALERTS):
        return BadCertificateError(address=address, detail=detail)
    return ConnectError(address=address, detail=f"TLS failed: {detail}")
