"""One TCP connection as a bounded stream of bytes, plain or TLS, for either side.

An asyncio Protocol turned into ``await read…`` and ``write…; await flush``. TLS may start in its
middle (``tls``), and a connection may be handed over to another protocol (``transport``).

::

    transport ──► data_received ──► [decrypt] ──► buffer (bounded: reading pauses) ──► read_*
    transport ◄── [encrypt] ◄── pending writes ◄── write;  flush waits while the peer is slow

Bounds: the buffer stops reading above `READ_HIGH` bytes; a writer waits above `WRITE_HIGH`; with
`patience` set, a peer that stops in the middle of a line or block, or takes nothing of what is
sent, is given up (the start of something may be waited for without end), and so is one that sends
a line byte by byte. Lost hosts are found by TCP keep-alive. All waits are events; nothing polls.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from smallstack.srpc.errors import (
    ConnectionClosedError,
    LineTooLongError,
    PeerStalledError,
    TlsError,
)
from smallstack.srpc.patience import Patience
from smallstack.srpc.tls import SLICE, TlsSession, tls_reason

if TYPE_CHECKING:
    from smallstack.srpc.aside import Aside

T = TypeVar("T")
READ_HIGH: Final = 256 * 1024
WRITE_HIGH: Final = 256 * 1024
KEEP_ALIVE_SECONDS: Final = 300
TLS_TIMEOUT: Final = 60.0
STALL_TIMEOUT: Final = 60.0
LINGER_TIMEOUT: Final = 2.0
_TURN: Final = 256 * 1024
MAX_LINE: Final = 64 * 1024


def set_socket_options(sock: socket.socket) -> None:
    """Keep-alive and no delay; on a listening socket, accepted ones inherit it all."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEP_ALIVE_SECONDS * 1000)


class Stream(asyncio.Protocol):
    """The stream. One task reads and one writes at a time."""

    __slots__ = (
        "_buffer",
        "_dropped",
        "_eof",
        "_error",
        "_gone",
        "_loop",
        "_lost",
        "_pending",
        "_pending_size",
        "_reader",
        "_reading_paused",
        "_received",
        "_since_turn",
        "_sink",
        "_tls",
        "_transport",
        "_writer",
        "_writing_paused",
        "is_local",
        "patience",
        "remote_host",
        "remote_port",
    )

    def __init__(self) -> None:
        self.patience: Patience | None = None
        """How long a line may take, a block or a flush go on without a byte; None: no limit."""
        self.remote_host = ""
        self.remote_port = 0
        self.is_local = False
        """Whether the peer is on this machine, as far as addresses tell."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._received = 0
        self._eof = False
        self._error: BaseException | None = None
        self._reading_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._since_turn = 0
        self._dropped = False
        self._writing_paused = False
        self._writer: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] | None = None
        self._tls: TlsSession | None = None
        self._sink: asyncio.Protocol | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple) and len(name) >= 2:
            self.remote_host, self.remote_port = name[0], name[1]
        own = transport.get_extra_info("sockname")
        self.is_local = not self.remote_host or (bool(own) and own[0] == self.remote_host)

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._received += len(data)
        if self._tls is None:
            self._buffer += data
        else:
            self._tls.feed(data)
            if self._tls.ready:
                self._decrypt(self._tls)
        if self._sink is not None:
            self._feed_sink()
            return
        if len(self._buffer) > READ_HIGH and not self._reading_paused:
            self._pause()
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def eof_received(self) -> bool:
        """The peer will send no more; answers may still go out."""
        self._end(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone both ways."""
        self._transport = None
        self._dropped |= bool(self._pending)
        self._pending.clear()
        self._writing_paused = False
        self._end(exc)
        for future in (self._lost, self._writer):
            if future is not None and not future.done():
                future.set_result(None)
        if self._sink is not None:
            self._sink.connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True
        if self._sink is not None:
            self._sink.pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self._writing_paused = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        if self._sink is not None:
            self._sink.resume_writing()

    # Reading.

    def time(self) -> float:
        """Now, by the loop's clock, in seconds."""
        return self._loop.time()

    def has_data(self) -> bool:
        """Whether unread bytes are here."""
        return bool(self._buffer)

    async def read_line(self, limit: int = MAX_LINE) -> bytes:
        """The next line without its LF, of at most ``limit`` bytes.

        Raises LineTooLongError, ConnectionClosedError, PeerStalledError.
        """
        begun = None
        while (line := self.take_line(limit)) is None:
            if begun is not None:
                self.hurry(begun, 0)
            elif self._buffer:
                begun = self._loop.time()
            if not await self.more(stall=begun is not None):
                raise self._closed("in the middle of a line" if self._buffer else "")
        return line

    def take_line(self, limit: int = MAX_LINE) -> bytes | None:
        """The next line if it is here; raises LineTooLongError."""
        buffer = self._buffer
        end = buffer.find(b"\n", 0, limit + 1)
        if end < 0:
            if len(buffer) > limit:
                raise LineTooLongError(limit=limit)
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        return line

    def hurry(self, begun: float, size: int) -> None:
        """Give the peer up, for all that it sends, if it has come no further than ``size`` bytes.

        ``begun``, by the loop's clock, is when it should have begun. Raises PeerStalledError.
        """
        if self.patience is not None and self.patience.is_over(begun, size):
            raise self._stalled(self.patience)

    async def read_exactly(self, count: int) -> bytes:
        """``count`` bytes; raises ConnectionClosedError when they do not all come."""
        return b"".join(await self.read_parts(count))

    async def read_parts(self, count: int) -> list[bytes]:
        """As `read_exactly`, in the pieces they came in: joining many megabytes takes long."""
        parts: list[bytes] = []
        missing = count
        begun = self._loop.time()
        while True:
            if len(self._buffer) >= missing:
                parts.append(self._take(missing))
                return parts
            if self._buffer:
                parts.append(self._take(len(self._buffer)))
                missing -= len(parts[-1])
                self.hurry(begun, count - missing)
            elif not await self.more(stall=True):
                raise self._closed(f"{missing} of {count} bytes are missing")

    async def read_some(self, limit: int = READ_HIGH, *, stall: bool = False) -> bytes:
        """Between 1 and ``limit`` bytes, as soon as there are any; b"" at the end of the stream.

        Raises ConnectionClosedError when the connection broke, with ``stall`` PeerStalledError.
        """
        while not self._buffer:
            if not await self.more(stall):
                if self._error is not None:
                    raise self._closed("")
                return b""
        return self._take(min(limit, len(self._buffer)))

    def peek(self) -> bytearray:
        """All unread bytes; not to be changed or kept."""
        return self._buffer

    async def more(self, stall: bool = False) -> bool:
        """Wait until more unread bytes are here than now; False at the end of the stream.

        With ``stall``, no longer than `patience` lasts: raises PeerStalledError.
        """
        if self._eof:
            return False
        before = self._received
        if self._reading_paused:
            self._resume()
        self._reader = self._loop.create_future()
        if self.patience is None or not stall:
            await self._reader
        elif not await self.patience.wait(self._reader):
            raise self._stalled(self.patience)
        return self._received != before

    def skip(self, count: int) -> None:
        """Take ``count`` bytes of what `peek` showed."""
        del self._buffer[:count]

    def unread(self, data: bytes) -> None:
        """Put bytes back before all others."""
        self._buffer[:0] = data

    # Writing.

    def write(self, data: bytes) -> None:
        """Queue bytes; they are sent at the next flush, or before when there are many."""
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size > SLICE:
            self.push()

    async def flush(self) -> None:
        """Send what is queued; waits while the peer is slow in taking it.

        Also with a peer that takes everything at once, others get their turn in between.
        Raises ConnectionClosedError, PeerStalledError.
        """
        self.push()
        if self._since_turn > _TURN:
            self._since_turn = 0
            await asyncio.sleep(0)
        if self._writing_paused:
            await self._until_taken()
        if self._dropped:
            raise self._closed("")

    async def _until_taken(self) -> None:
        begun, size = self._loop.time(), self._unsent()
        while self._writing_paused:
            before = self._unsent()
            self._writer = self._loop.create_future()
            if self.patience is None:
                await self._writer
            elif not await self.patience.wait(self._writer):
                unsent = self._unsent()
                if unsent >= before or self.patience.is_over(begun, size - unsent):
                    raise self._stalled(self.patience)

    def flushed(self) -> bool:
        """Send what is queued if the peer takes it at once; otherwise `flush` is to be awaited."""
        self.push()
        return not (self._writing_paused or self._dropped or self._since_turn > _TURN)

    # Past the loop.

    @contextmanager
    def reading_aside(self) -> Iterator["Aside | None"]:
        """What to read large parts of the stream with meanwhile, in place of all else here.

        None where that cannot be: unread bytes are here, it is encrypted, it has ended.
        """
        sock = self._socket()
        if sock is None or self._buffer or self._eof:
            yield None
            return
        from smallstack.srpc.aside import Aside  # no client needs it to start

        self._pause()
        try:
            with Aside(sock) as aside:
                yield aside
        finally:
            self._resume()

    @asynccontextmanager
    async def writing_aside(self) -> AsyncIterator["Aside | None"]:
        """What to send many bytes with meanwhile, in place of all else here; None as above.

        Waits until all that was written before is out. Raises ConnectionClosedError,
        PeerStalledError.
        """
        await self.flush()
        sock = self._socket()
        if sock is None or self._transport is None:
            yield None
            return
        from smallstack.srpc.aside import Aside

        self._transport.set_write_buffer_limits(high=0)
        try:
            await self.flush()
        finally:
            if self._transport is not None:
                self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        with Aside(sock, self.patience) as aside:
            aside.buffer_more()
            yield aside

    def _socket(self) -> int | None:
        """The descriptor of a plain connection that is not handed over to anybody."""
        transport = self._transport
        if self._tls is not None or self._sink is not None or transport is None:
            return None
        sock = transport.get_extra_info("socket")
        return sock.fileno() if sock is not None and not transport.is_closing() else None

    def stalled(self) -> PeerStalledError:
        """Give up a peer that took nothing for too long; the error to raise."""
        assert self.patience is not None
        return self._stalled(self.patience)

    # The end.

    @property
    def peer_name(self) -> str:
        """``host:port`` of the other end."""
        host = f"[{self.remote_host}]" if ":" in self.remote_host else self.remote_host
        return f"{host}:{self.remote_port}" if host else "the peer"

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone, or the peer has ended its side."""
        return self._eof or self._transport is None

    async def peer_gone(self) -> None:
        """Returns when the peer closes, also with unread bytes here.

        While more than `READ_HIGH` bytes are unread nothing is read, so nothing is noticed.
        """
        if self.is_closed:
            return
        if self._gone is None:
            self._gone = self._loop.create_future()
        await asyncio.shield(self._gone)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled when the peer goes away.

        Raises ConnectionClosedError then.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.peer_gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and task.exception() is None:
                return task.result()
            raise self._closed("in the middle of a call")
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    def close(self) -> None:
        """Send what is queued, then close; returns at once."""
        transport = self._transport
        if transport is None:
            return
        self.push()
        self._say_farewell()
        transport.close()

    async def linger(self, timeout: float = LINGER_TIMEOUT) -> None:
        """End our side and throw away what still comes, until the peer ends its own.

        A connection that is closed while the peer still sends is reset by the system, and the
        reset overtakes what was last said: a peer would never see why it was turned away.
        """
        transport = self._transport
        if transport is None or self._eof or transport.is_closing():
            return
        self.push()
        self._say_farewell()
        transport.write_eof()
        try:
            async with asyncio.timeout(timeout):
                while not self._eof:
                    self._buffer.clear()
                    await self.more()
        except TimeoutError:
            pass

    def abort(self) -> None:
        """Drop the connection and what is queued."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone both ways."""
        if self._transport is not None:
            if self._lost is None:
                self._lost = self._loop.create_future()
            await asyncio.shield(self._lost)

    def hand_over(self, protocol: asyncio.Protocol, **facts: object) -> None:
        """Give the connection to another protocol, unread bytes first; it is not ours any more.

        ``facts`` are what the protocol's transport answers to ``get_extra_info``.
        """
        transport = self._transport
        if transport is None:
            return
        self._resume()
        data, ended = self._take(len(self._buffer)), self._eof
        self.push()
        from smallstack.srpc.transport import StreamTransport  # no client needs it

        protocol.connection_made(StreamTransport(self, transport, protocol, facts))
        self._sink = protocol
        if data:
            protocol.data_received(data)
        if ended:
            protocol.eof_received()
            self.close()

    # TLS.

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS session, None on a plain stream."""
        return self._tls.ssl if self._tls is not None else None

    async def start_tls(
        self, context: ssl.SSLContext, server_side: bool, timeout: float = TLS_TIMEOUT
    ) -> None:
        """Go on in TLS from the next byte, ours and the peer's. Raises TlsError."""
        self.push()
        tls = self._tls = TlsSession(context, server_side)
        tls.feed(self._buffer)
        self._buffer.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._handshake(tls)
        except TimeoutError:
            self.abort()
            raise TlsError(peer=self.peer_name, detail=f"no answer in {timeout:.0f} s") from None

    async def _handshake(self, tls: TlsSession) -> None:
        while True:
            try:
                done = tls.handshake()
            except (ssl.SSLError, OSError) as error:
                raise TlsError(peer=self.peer_name, detail=tls_reason(error)) from error
            finally:
                self._send_encrypted(tls)  # also the alert
            if done:
                break
            if not await self.more():
                raise TlsError(
                    peer=self.peer_name, detail="it closed the connection in the handshake"
                ) from self._error
        self._decrypt(tls)

    def _decrypt(self, tls: TlsSession) -> None:
        if self._eof:
            return
        try:
            if tls.decrypt(self._buffer):
                self._end(None)
        except (ssl.SSLError, OSError) as error:
            self._send_encrypted(tls)
            self._end(error)
            return
        self._send_encrypted(tls)  # a key update to answer

    def _say_farewell(self) -> None:
        if self._tls is not None and self._tls.ready:
            self._tls.farewell()
            self._send_encrypted(self._tls)

    def _send_encrypted(self, tls: TlsSession) -> None:
        data = tls.outgoing()
        if data and self._transport is not None:
            self._transport.write(data)

    # The rest.

    def push(self) -> None:
        """Give what is queued to the system, without waiting; see `flush`."""
        pending = self._pending
        if not pending:
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        self._pending_size = 0
        self._since_turn += len(data)
        if self._transport is None or self._transport.is_closing():
            self._dropped = True
            return
        if self._tls is None:
            self._transport.write(data)
            return
        try:
            self._tls.encrypt(data)
        except (ssl.SSLError, OSError) as error:
            self._end(error)
            self.abort()
            return
        self._send_encrypted(self._tls)

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        if self._reading_paused and len(self._buffer) < READ_HIGH // 2:
            self._resume()
        return data

    def _stalled(self, patience: Patience) -> PeerStalledError:
        self.abort()
        return PeerStalledError(peer=self.peer_name, seconds=patience.seconds)

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _end(self, error: BaseException | None) -> None:
        ending = self._sink is not None and not self._eof
        self._eof = True
        if ending and self._sink is not None and not self._sink.eof_received():
            self.close()
        if self._error is None:
            self._error = error
        self._wake_reader()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def _closed(self, detail: str) -> ConnectionClosedError:
        if isinstance(self._error, ssl.SSLError):
            detail = tls_reason(self._error)
        elif isinstance(self._error, OSError):
            detail = self._error.strerror or detail
        closed = ConnectionClosedError(peer=self.peer_name, detail=detail or "end of the stream")
        closed.__cause__ = self._error
        return closed

    def _feed_sink(self) -> None:
        if self._sink is not None and self._buffer:
            data = self._take(len(self._buffer))
            self._sink.data_received(data)
