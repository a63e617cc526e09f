"""A connection after its handshake: a stream that also carries values, for either side.

Each call has an encoder and a decoder of its own on both sides, so types are described anew; raw
bytes may stand before, between and behind values. The decoder never reads a byte too many::

    gob    one length-prefixed message at a time is taken off the stream and fed
    JSON   everything here is fed; what lies behind the value is put back

Values above `THREAD_SIZE` bytes are decoded in the thread pool, so that the loop goes on.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import msgspec

from smallstack.identity.peer import Peer
from smallstack.srpc import gob
from smallstack.srpc.budget import LARGE, Budget
from smallstack.srpc.coder import DEFAULT, NEED_MORE, Limits, NeedMoreType
from smallstack.srpc.errors import RemoteProtocolError
from smallstack.srpc.stream import MAX_LINE, READ_HIGH, WRITE_HIGH, Stream

if TYPE_CHECKING:
    from smallstack.srpc import json_coder

T = TypeVar("T")
THREAD_SIZE: Final = 128 * 1024
"""Bytes above which decoding is not the loop's work: some milliseconds of CPU time."""
MESSAGES: Final = 100
"""Messages of one value taken in a row: a value may come in thousands of tiny ones."""
_NOBODY: Final = Peer()


class Encoder(Protocol):
    """What both codecs' encoders are."""

    def encode(self, value: Any) -> bytes:
        """The bytes of one value, with what a decoder needs to know first."""


class Decoder(Protocol):
    """What both codecs' decoders are."""

    def feed(self, data: bytes) -> None:
        """More bytes."""

    def decode(self, type_: type[T]) -> T | NeedMoreType:
        """The next value, or NEED_MORE."""

    def take_rest(self) -> bytes:
        """Bytes behind the last value."""


class Connection(Stream):
    """One stream with codecs. ``peer`` is who is at the other end, for servers."""

    __slots__ = (
        "_decoder",
        "_encoder",
        "_late_newline",
        "budget",
        "json",
        "limits",
        "moved",
        "peer",
        "peer_with_access",
    )

    def __init__(self) -> None:
        super().__init__()
        self.peer: Peer = _NOBODY
        self.peer_with_access: Peer = _NOBODY
        """The same one, as a call sees it that was granted by method powers."""
        self.json = False
        self.moved: Connection | None = None
        """What goes on in its place; see `smallstack.srpc.local`."""
        self.limits: Limits = DEFAULT
        self.budget: Budget | None = None
        """What large values of this peer share; None for no bound but each one's own."""
        self._late_newline = False  # of the last JSON value: it may still be on its way
        self._encoder: Encoder | None = None
        self._decoder: Decoder | None = None

    def set_peer(self, peer: Peer) -> None:
        """Who is at the other end."""
        self.peer = peer
        self.peer_with_access = msgspec.structs.replace(peer, have_method_access=True)

    def continues(self, other: "Connection") -> None:
        """Take over from another connection: who is at the other end, what it speaks."""
        self.peer, self.peer_with_access = other.peer, other.peer_with_access
        self.remote_host, self.remote_port = other.remote_host, other.remote_port
        self.json, self.limits, self.patience = other.json, other.limits, other.patience
        self.budget = other.budget

    def begin_call(self) -> None:
        """New codecs from here on."""
        self._encoder = self._decoder = None

    def encode(self, value: Any) -> None:
        """Queue one value for sending, see `flush`. Raises LocalProtocolError if it cannot be."""
        encoder = self._encoder
        if encoder is None:
            encoder = self._encoder = _json().Encoder() if self.json else gob.Encoder()
        self.write(encoder.encode(value))

    async def encode_in_thread(self, value: Any) -> None:
        """As `encode`, for values of many thousand parts: the loop goes on meanwhile."""
        encoder = self._encoder
        if encoder is None:
            encoder = self._encoder = _json().Encoder() if self.json else gob.Encoder()
        data = await asyncio.to_thread(encoder.encode, value)
        for start in range(0, len(data), WRITE_HIGH):
            self.write(data[start : start + WRITE_HIGH])
            if len(data) > WRITE_HIGH:
                await self.flush()  # encrypting it all would hold the loop as well

    async def decode(self, type_: type[T], *, idle: bool = False) -> T:
        """The next value. With ``idle`` its first byte may take as long as it likes.

        Raises RemoteProtocolError, ConnectionClosedError, PeerStalledError.
        """
        if idle and not self._buffer:
            await self.more()
        if self.json:
            return await self._decode_json(type_)
        value = self.decode_here(type_)
        if value is NEED_MORE and not self._buffer:
            # A request is nearly always one packet, not yet here: nothing else is needed for it.
            if not await self.more(stall=True):
                raise self._closed("")
            value = self.decode_here(type_)
        if value is not NEED_MORE:
            return value
        room = _Room(self.budget)
        try:
            return await self._decode_gob(type_, room)
        finally:
            room.leave()

    async def _decode_gob(self, type_: type[T], room: "_Room") -> T:
        begun, before = self._loop.time(), self._received
        messages = 0
        while True:
            assert self._decoder is not None
            messages += 1
            if messages % MESSAGES == 0:
                await asyncio.sleep(0)
            size = await self._gob_message()
            self.hurry(begun, self._received - before)
            if await room.enter(size):
                begun, before = self._loop.time(), self._received  # it was not the peer who waited
            parts = await self.read_parts(size)
            if size > THREAD_SIZE:
                value = await asyncio.to_thread(_feed_and_decode, self._decoder, parts, type_)
            else:
                value = _feed_and_decode(self._decoder, parts, type_)
            if value is not NEED_MORE:
                return value

    def decode_here(self, type_: type[T]) -> T | NeedMoreType:
        """The next value if all of it is here and not too much for the loop, else NEED_MORE.

        For gob only. Raises RemoteProtocolError.
        """
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = gob.Decoder(self.limits)
        for _ in range(MESSAGES):
            lengths = gob.message_length(self._buffer)
            if lengths is NEED_MORE:
                break
            size = lengths[0] + lengths[1]
            if size > THREAD_SIZE or size > len(self._buffer):
                break
            decoder.feed(self._take(size))
            value = decoder.decode(type_)
            if value is not NEED_MORE:
                return value
        return NEED_MORE

    async def read_line(self, limit: int = MAX_LINE) -> bytes:
        """As `Stream.read_line`."""
        if self._late_newline:
            await self._skip_newline()
        return await super().read_line(limit)

    def take_line(self, limit: int = MAX_LINE) -> bytes | None:
        """As `Stream.take_line`."""
        if self._late_newline and self._buffer:
            self._late_newline = False
            if self._buffer.startswith(b"\n"):
                self.skip(1)
        return super().take_line(limit)

    async def read_exactly(self, count: int) -> bytes:
        """As `Stream.read_exactly`."""
        if self._late_newline and count:
            await self._skip_newline()
        return await super().read_exactly(count)

    async def read_some(self, limit: int = READ_HIGH, *, stall: bool = False) -> bytes:
        """As `Stream.read_some`."""
        if self._late_newline:
            await self._skip_newline(stall)
        return await super().read_some(limit, stall=stall)

    async def _skip_newline(self, stall: bool = False) -> None:
        """A JSON value and its line feed may come in two pieces; it belongs to the value."""
        if self._buffer or await self.more(stall):
            self._late_newline = False
            if self._buffer.startswith(b"\n"):
                self.skip(1)

    async def _gob_message(self) -> int:
        """The size of the next length-prefixed message, with its prefix."""
        while (lengths := gob.message_length(self._buffer)) is NEED_MORE:
            if not await self.more(stall=True):
                raise self._closed("in the middle of a value" if self._buffer else "")
        header, body = lengths
        if body > self.limits.message:
            raise gob.GobError(what=f"a message of {body} bytes")
        return header + body

    async def _decode_json(self, type_: type[T]) -> T:
        room = _Room(self.budget)
        try:
            return await self._decode_json_in(type_, room)
        finally:
            room.leave()

    async def _decode_json_in(self, type_: type[T], room: "_Room") -> T:
        if self._decoder is None:
            self._decoder = _json().Decoder(self.limits)
        decoder = cast("json_coder.Decoder", self._decoder)
        begun, before = self._loop.time(), self._received
        while True:
            if await room.enter(len(self._buffer)):
                begun, before = self._loop.time(), self._received
            data = bytes(self._buffer)
            self._buffer.clear()
            if len(data) > THREAD_SIZE:
                value = await asyncio.to_thread(_feed_and_decode, decoder, [data], type_)
            else:
                value = _feed_and_decode(decoder, [data], type_)
            if value is not NEED_MORE:
                break
            self.hurry(begun, self._received - before)
            if not await self.more(stall=True):
                raise self._closed("in the middle of a value")
        self._late_newline = decoder.newline_pending
        self.unread(decoder.take_rest())
        return value


class _Room:
    """What one value, coming in pieces, has of a budget."""

    __slots__ = ("_budget", "_held", "_size")

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget
        self._held = 0
        self._size = 0

    async def enter(self, size: int) -> bool:
        """So many bytes more will be there; whether that had to be waited for.

        Raises RemoteProtocolError in the middle of a value for which there is no room any more.
        """
        self._size += size
        budget = self._budget
        if budget is None or self._size <= max(self._held, LARGE):
            return False
        if self._held:
            if not budget.grow(self._held, self._size - self._held):
                raise RemoteProtocolError(what="more large values at once than one user may send")
        else:
            await budget.take(self._size)
        self._held = self._size
        return True

    def leave(self) -> None:
        """The value is here, or never will be."""
        if self._budget is not None and self._held:
            self._budget.give(self._held)


def _feed_and_decode(decoder: Decoder, parts: list[bytes], type_: type[T]) -> T | NeedMoreType:
    for part in parts:
        decoder.feed(part)
    return decoder.decode(type_)


def _json() -> Any:
    from smallstack.srpc import json_coder

    return json_coder
