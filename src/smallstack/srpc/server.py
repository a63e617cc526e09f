"""The serving side: CONNECT, TLS, who it is, then one call after the other.

::

    first bytes ─► head ─► endpoint? ─► 200 ─► [TLS] ─► Peer ─► ┌► method line ─► decide ─┐
                    │          │                 │              │    refused: error line ─┤
                 400 408    404 405            alert            │    ping: LF ────────────┤
                            401 503                             └── call, reply ◄─ LF ◄───┘

A refused call keeps the connection; so does an error of a request/reply handler. A raw handler
that raises, and a request that cannot be decoded, end it. Nobody waits for ever on a peer that is
in the middle of something: the handshake, a line, a request. An idle connection may stay.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from smallstack.identity.credentials import ServerCredentials
from smallstack.identity.decision import Policy, decide
from smallstack.identity.errors import CertificateFormatError
from smallstack.identity.peer import Peer
from smallstack.identity.renewal import Renewable
from smallstack.proto.methods import METHODS, Method, Shape
from smallstack.srpc import framing
from smallstack.srpc.audit import Audit
from smallstack.srpc.budget import Budget
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import (
    ConnectionClosedError,
    InsecureServerError,
    LineTooLongError,
    PeerStalledError,
    RemoteProtocolError,
    TlsError,
)
from smallstack.srpc.identify import identify
from smallstack.srpc.local import LocalDoor
from smallstack.srpc.observer import NoObserver, Observer
from smallstack.srpc.patience import Patience
from smallstack.srpc.rates import Rates
from smallstack.srpc.stream import STALL_TIMEOUT
from smallstack.telemetry.errors import SmallStackError

HANDSHAKE_TIMEOUT: Final = 15.0
"""Seconds for a whole CONNECT head; TLS has a minute of its own."""
MAX_CONNECTIONS: Final = 20_000
MAX_USER_CONNECTIONS: Final = 15_000
"""Of one user, by name or, without one, by address: others find room as well."""
CALLS_PER_SECOND: Final = 1_000
MAX_HANDSHAKES: Final = 1_000
"""Unfinished handshakes; a further one pushes the oldest out."""

LARGE_REPLIES: Final = frozenset({"ImageServer.GetImage", "Hypervisor.ScanVmRoot"})
"""Methods whose replies hold trees of any size: 10,000 inodes take 6 ms to encode."""

_log = logging.getLogger("smallstack.srpc")
_LF: Final = b"\n"
_TURN: Final = 8
"""Calls or pings sent ahead that are answered in a row: a millisecond or less."""
Req = TypeVar("Req")


class Call:
    """One call in progress, as its handler sees it."""

    __slots__ = ("_audit", "conn", "method", "peer")

    def __init__(self, conn: Connection, method: Method, peer: Peer, audit: Audit) -> None:
        self.conn = conn
        self.method = method
        self.peer = peer
        """The caller; ``peer.have_method_access`` is about this call."""
        self._audit = audit

    def failed(self, error: Exception) -> None:
        """Note in the audit what keeps the caller from what only others may do."""
        if isinstance(error, SmallStackError) and error.denies:
            what = f"{self.method.name}: {error}"
            self._audit.refused(self.peer.username, self.conn.peer_name, what)


Handler = Callable[..., Awaitable[Any]]
"""Request/reply: ``async (call, request) -> reply``. Raw and coder: ``async (call) -> None``.

A request/reply handler refuses by raising RpcError, or any SmallStackError, whose text is the
error line. A raw handler that raises closes the connection.
"""


class _Registered(NamedTuple):
    method: Method
    handler: Handler
    unauthenticated: bool


class _User:
    """What the connections of one user share."""

    __slots__ = ("budget", "connections")

    def __init__(self) -> None:
        self.budget = Budget()
        self.connections = 0


class Server:
    """Services by name, and the connections being served."""

    def __init__(
        self,
        credentials: ServerCredentials | Renewable[ServerCredentials] | None = None,
        *,
        insecure: bool = False,
        policy: Policy | None = None,
        allow_unauthenticated_reads: bool = False,
        observer: Observer | None = None,
        max_connections: int = MAX_CONNECTIONS,
        max_user_connections: int = MAX_USER_CONNECTIONS,
        max_handshakes: int = MAX_HANDSHAKES,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        stall_timeout: float = STALL_TIMEOUT,
        calls_per_second: float = CALLS_PER_SECOND,
    ) -> None:
        """``insecure`` serves the plain endpoints with every right for everybody.

        ``calls_per_second`` is for each user, see `smallstack.srpc.rates`.
        Raises InsecureServerError when there are neither credentials nor that wish.
        """
        if credentials is None and not insecure:
            raise InsecureServerError
        if isinstance(credentials, ServerCredentials):
            credentials = Renewable.fixed(credentials)
        self._credentials = credentials
        self.insecure = insecure
        self.policy = policy or Policy()
        self.observer: Observer = observer or NoObserver()
        self.audit = Audit()
        self._rates = Rates(calls_per_second)
        self._max_user_connections = max_user_connections
        self._users: dict[str, _User] = {}
        self._reads = allow_unauthenticated_reads
        self._max_connections = max_connections
        self._max_handshakes = max_handshakes
        self._handshake_timeout = handshake_timeout
        self._stall_timeout = stall_timeout
        self._patience: Patience | None = None
        self._services: dict[str, dict[str, _Registered]] = {}
        self._by_line: dict[bytes, _Registered] = {}
        self._idle: set[Connection] = set()
        self._busy: dict[Connection, asyncio.Task[Any]] = {}
        self._endless: set[asyncio.Task[Any]] = set()
        self._handshakes: dict[Connection, None] = {}
        self._door = LocalDoor(handshake_timeout)
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()

    def register(
        self,
        service: str,
        handlers: Mapping[str, Handler],
        methods: Mapping[str, Method] = METHODS,
    ) -> None:
        """Serve ``service`` by handlers under their short names, described by ``methods``.

        Raises KeyError for a handler of a method that is not in the table.
        """
        known = self._services.setdefault(service, {})
        for name, handler in handlers.items():
            method = methods[f"{service}.{name}"]
            found = _Registered(method, handler, self._reads and method.unauthenticated_read)
            known[name] = self._by_line[method.name.encode()] = found

    def method_names(self, public_only: bool = False) -> list[str]:
        """Full names of the methods served, sorted."""
        names = [
            found.method.name
            for service in self._services.values()
            for found in service.values()
            if found.method.public or not public_only
        ]
        return sorted(names if public_only else [framing.UPGRADE.decode(), *names])

    @property
    def connections(self) -> int:
        """How many connections are open, those in their handshake included."""
        return len(self._idle) + len(self._busy) + len(self._handshakes)

    async def serve(self, conn: Connection, tls_peer: Peer | None = None) -> None:
        """Serve one connection from its CONNECT on; returns when it is closed.

        ``tls_peer`` is who TLS said it is, for a connection that is inside TLS already.
        """
        if self._patience is None:
            self._patience = Patience(self._stall_timeout)
        conn.patience = self._patience
        try:
            if await self._open(conn, tls_peer):
                await self._calls(conn)
            if not self._closing:
                await conn.linger()
        except (ConnectionClosedError, PeerStalledError) as error:
            _log.debug("%s", error)
        except RemoteProtocolError as error:
            self._refused(conn, str(error))
        finally:
            self.forget(conn)
            conn.close()

    def _refused(self, conn: Connection, what: str) -> None:
        self.audit.refused(conn.peer.username, conn.peer_name, what)

    def admit(self, conn: Connection) -> bool:
        """Count a new connection in; False, and it is turned away, when there are too many.

        The oldest unfinished handshake makes room for a new one, so that peers that never finish
        theirs cannot keep others out.
        """
        if self._closing or self.connections >= self._max_connections:
            self._refused(conn, "too many connections")
            self.observer.rejected("too many")
            conn.abort()
            return False
        if len(self._handshakes) >= self._max_handshakes:
            oldest = next(iter(self._handshakes))
            self.forget(oldest)
            self.observer.rejected("handshake")
            oldest.abort()
        self._handshakes[conn] = None
        self._empty.clear()
        return True

    def forget(self, conn: Connection) -> None:
        """Undo `admit` for a connection that is none of ours (a page's) or is over."""
        self._handshakes.pop(conn, None)
        self._check_empty()

    async def wait_empty(self) -> None:
        """Returns when no connection is open."""
        await self._empty.wait()

    def _check_empty(self) -> None:
        if not self.connections:
            self._empty.set()

    async def close(self, grace: float = 5.0) -> None:
        """Take no more calls; those running that have an end have ``grace`` seconds for it."""
        self._closing = True
        self._door.close()
        for conn in [*self._idle, *self._handshakes]:
            conn.close()
        for task in list(self._endless):
            task.cancel()
        tasks = list(self._busy.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for task in list(self._busy.values()):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for conn in [*self._idle, *self._handshakes, *self._busy]:
            conn.abort()

    # The handshake.

    async def _open(self, conn: Connection, tls_peer: Peer | None) -> bool:
        """CONNECT and TLS; whether calls may follow."""
        try:
            head = await self._head(conn)
        except framing.FramingError as error:
            return await self._refuse(conn, 400, str(error))
        if head is None:
            return await self._refuse(conn, 408)
        endpoint = framing.find_endpoint(head.path)
        if endpoint is None or (endpoint.tls and self._credentials is None):
            return await self._refuse(conn, 404)
        if head.method != "CONNECT":
            return await self._refuse(conn, 400)
        if not endpoint.tls and not self.insecure and not self._has_unauthenticated():
            return await self._refuse(conn, 405)
        if endpoint.tls and tls_peer is not None and not tls_peer.encrypted:
            return await self._refuse(conn, 401)
        conn.write(framing.CONNECTED)
        await conn.flush()
        methods = None if self.insecure else frozenset[str]()
        peer = Peer(methods=methods, remote_host=conn.remote_host, remote_port=conn.remote_port)
        if endpoint.tls:
            if tls_peer is not None:
                peer = tls_peer
            else:
                found = await self._tls(conn)
                if found is None:
                    return False
                peer = found
        powers = not framing.wants_no_powers(head.query)
        conn.set_peer(msgspec.structs.replace(peer, allow_method_powers=powers))
        conn.json = endpoint.json
        return True

    async def _head(self, conn: Connection) -> framing.RequestHead | None:
        try:
            async with asyncio.timeout(self._handshake_timeout):
                while (head := framing.parse_request_head(conn.peek())) is None:
                    if not await conn.more():
                        raise ConnectionClosedError(peer=conn.peer_name, detail="before CONNECT")
        except TimeoutError:
            return None
        conn.skip(head.size)
        return head

    async def _tls(self, conn: Connection) -> Peer | None:
        credentials = await self.credentials()
        if credentials is None:
            return None
        try:
            await conn.start_tls(credentials.context, server_side=True)
            return identify(conn, credentials)
        except (TlsError, CertificateFormatError) as error:
            self._refused(conn, str(error))
            self.observer.rejected("tls")
            return None

    async def credentials(self) -> ServerCredentials | None:
        """Those for a handshake that begins now; None when there is no TLS."""
        return None if self._credentials is None else await self._credentials.fresh()

    async def _refuse(self, conn: Connection, code: int, why: str = "") -> bool:
        self._refused(conn, why or framing.reason(code))
        self.observer.rejected(str(code))
        conn.write(framing.refusal(code))
        await conn.flush()
        return False

    def _has_unauthenticated(self) -> bool:
        return self._reads and any(
            found.unauthenticated
            for service in self._services.values()
            for found in service.values()
        )

    # Calls.

    async def _calls(self, conn: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handshakes.pop(conn, None)
        user = conn.peer.username or conn.remote_host
        shared = self._users.setdefault(user, _User())
        if shared.connections >= self._max_user_connections:
            self._refused(conn, f"more than {shared.connections} connections of one user")
            self.observer.rejected("too many of one user")
            return
        shared.connections += 1
        conn.budget = shared.budget
        self._idle.add(conn)
        self.observer.connection(True)
        served = 0
        first = conn
        try:
            while not self._closing:
                if not conn.has_data():
                    served = 0
                    if not await conn.more():
                        return
                elif served >= _TURN:  # it sends faster than it is answered: others have their turn
                    served = 0
                    await asyncio.sleep(0)
                served += 1
                if (delay := self._rates.delay(user, conn.time())) > 0.0:
                    served = 0
                    self.observer.delayed()
                    await asyncio.sleep(delay)
                self._idle.discard(conn)
                self._busy[conn] = task
                if not await self._one(conn):
                    return
                if not conn.flushed():
                    await conn.flush()
                del self._busy[conn]
                if conn.moved is not None:
                    conn.close()
                    conn = conn.moved
                self._idle.add(conn)
        finally:
            if conn is not first:
                conn.close()
            self._idle.discard(conn)
            self._busy.pop(conn, None)
            shared.connections -= 1
            if not shared.connections:
                del self._users[user]
            self._check_empty()
            self.observer.connection(False)

    async def _one(self, conn: Connection) -> bool:
        """Answer one method line; whether the connection goes on."""
        try:
            line = conn.take_line(framing.MAX_METHOD_LINE)
            if line is None:
                if not conn.has_data():
                    return True  # what was here was the end of the last call
                line = await conn.read_line(framing.MAX_METHOD_LINE)
        except LineTooLongError as error:
            conn.write(framing.error_line(str(error)))
            await conn.flush()
            return False
        found = self._by_line.get(line)
        if found is None:
            try:
                found = self._find(line)
            except framing.MethodLineError as error:
                conn.write(framing.error_line(str(error)))
                return True
            if found is None:
                conn.write(_LF)
                if line.strip() == framing.UPGRADE:
                    return await self._upgrade(conn)
                return True
        method = found.method
        decision = decide(
            conn.peer,
            method.power,
            public=method.public,
            unauthenticated=found.unauthenticated,
            policy=self.policy,
        )
        if not decision.allowed:
            self._refused(conn, f"{method.name}: {framing.ACCESS_DENIED}")
            self.observer.denied(method.name)
            conn.write(framing.error_line(framing.ACCESS_DENIED))
            return True
        peer = conn.peer_with_access if decision.have_method_access else conn.peer
        return await self._call(found, Call(conn, method, peer, self.audit))

    def _find(self, line: bytes) -> _Registered | None:
        """The method a line names, None for a ping or an upgrade. Raises MethodLineError."""
        names = framing.split_method(line)
        if names is None or line.strip() == framing.UPGRADE:
            return None
        service, name = names
        methods = self._services.get(service)
        if methods is None:
            raise framing.MethodLineError(what=f"unknown service: {service}")
        found = methods.get(name)
        if found is None:
            raise framing.MethodLineError(what=f"{service}: unknown method: {name}")
        return found

    async def _upgrade(self, conn: Connection) -> bool:
        """Move a local connection to a Unix socket, for whoever is at its other end."""
        conn.begin_call()
        await conn.flush()
        try:
            conn.moved = await self._door.upgrade(conn)
        except RemoteProtocolError as error:
            _log.info("%s: %s: %s", conn.peer, framing.UPGRADE.decode(), error)
            return False
        return True

    async def _call(self, found: _Registered, call: Call) -> bool:
        conn, name = call.conn, call.method.name
        conn.begin_call()
        conn.write(_LF)
        if not conn.flushed():
            await conn.flush()
        self.observer.started(name)
        start = time.perf_counter()
        outcome = "failed"
        task = self._busy.get(conn) if call.method.endless else None
        if task is not None:
            self._endless.add(task)
        try:
            if call.method.shape is Shape.REQUEST_REPLY:
                outcome = await self._request_reply(found, call)
            else:
                outcome = await _raw(found, call)
        finally:
            if task is not None:
                self._endless.discard(task)
            self.observer.finished(name, time.perf_counter() - start, outcome)
        return outcome != "failed"

    async def _request_reply(self, found: _Registered, call: Call) -> str:
        conn = call.conn
        assert call.method.request is not None
        try:
            request = await conn.decode(call.method.request)
        except RemoteProtocolError as error:
            conn.write(framing.error_line(str(error)))
            await conn.flush()
            self._refused(conn, f"{call.method.name}: {error}")
            return "failed"  # nobody knows where the next call would start
        try:
            reply = await found.handler(call, request)
        except (ConnectionClosedError, PeerStalledError):
            raise
        except SmallStackError as error:
            call.failed(error)
            conn.write(framing.error_line(str(error)))
            return "error"
        except Exception:
            _log.exception("%s: %s failed", call.peer, call.method.name)
            conn.write(framing.error_line("internal error: the server's log has more"))
            return "error"
        conn.write(_LF)
        if call.method.name in LARGE_REPLIES:
            await conn.encode_in_thread(reply)
        else:
            conn.encode(reply)
        return "ok"


async def _raw(found: _Registered, call: Call) -> str:
    try:
        await found.handler(call)
    except (ConnectionClosedError, PeerStalledError) as error:
        _log.debug("%s: %s: %s", call.peer, call.method.name, error)
        return "failed"
    except SmallStackError as error:
        call.failed(error)
        _log.info("%s: %s: %s", call.peer, call.method.name, error)
        return "failed"
    except Exception:
        _log.exception("%s: %s failed", call.peer, call.method.name)
        return "failed"
    return "ok"
