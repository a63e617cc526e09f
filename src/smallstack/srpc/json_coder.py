"""JSON, the second coder of SRPC: one value and a line feed each way.

Enumerations are words, addresses and times text, bytes base64, durations nanoseconds; embedded
structures lie flat in the object around them. Names of fields are matched in any case, unknown
ones are skipped, and null leaves a field as it is, as upstream's reader does. Where that one sends
null for an empty list, this one sends ``[]``. Values are built by ``json_reader`` and taken apart
by ``json_writer``; here are texts, and where one ends.
"""

import re
from typing import Any, TypeVar, overload

import msgspec

from smallstack.srpc.coder import DEFAULT, NEED_MORE, Limits, NeedMoreType
from smallstack.srpc.errors import JsonError
from smallstack.srpc.json_end import ValueEnd
from smallstack.srpc.json_reader import reader
from smallstack.srpc.json_writer import writer
from smallstack.srpc.schema import node_of

T = TypeVar("T")


def to_json(value: object, type_: Any = None, *, indent: int = 0) -> bytes:
    """A value as JSON, without a line feed behind it; raises LocalProtocolError.

    ``type_`` is needed where the value's class does not say what it is; ``indent`` in spaces.
    """
    node = node_of(type(value) if type_ is None else type_)
    text = msgspec.json.encode(writer(node)(value))
    return msgspec.json.format(text, indent=indent) if indent else text


@overload
def from_json(data: bytes | str, type_: type[T]) -> T: ...
@overload
def from_json(data: bytes | str, type_: Any) -> Any: ...
def from_json(data: bytes | str, type_: Any) -> Any:
    """The value in a JSON text; raises JsonError."""
    try:
        loose = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JsonError(what=str(error)) from None
    node = node_of(type_)
    made = reader(node)(loose)
    if made is None and node.cls is not None:
        return node.cls()
    return made


class Encoder:
    """Turns values into JSON lines."""

    def encode(self, value: object, type_: Any = None) -> bytes:
        """One value and a line feed; raises LocalProtocolError."""
        return to_json(value, type_) + b"\n"


class Decoder:
    """Takes bytes as they come, hands out values."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._end = ValueEnd(limits.depth)
        self.newline_pending = False
        """Whether the last value came without its line feed, which may still arrive."""

    def feed(self, data: bytes) -> None:
        """More bytes of the stream."""
        self._buffer += data

    @overload
    def decode(self, type_: type[T]) -> T | NeedMoreType: ...
    @overload
    def decode(self, type_: Any) -> Any: ...
    def decode(self, type_: Any) -> Any:
        """The next value, or NEED_MORE; raises JsonError, after which the stream is no use."""
        end = self._end.find(self._buffer)
        if end < 0:
            if len(self._buffer) > self._limits.message:
                raise JsonError(what=f"a value is above the limit of {self._limits.message} bytes")
            return NEED_MORE
        if end > self._limits.message:
            raise JsonError(what=f"a value is above the limit of {self._limits.message} bytes")
        text = bytes(self._buffer[:end])
        behind = re.match(rb"[ \t]*\r?\n", self._buffer[end : end + 64])
        self.newline_pending = behind is None
        del self._buffer[: end + (behind.end() if behind else 0)]
        self._end = ValueEnd(self._limits.depth)
        return from_json(text, type_)

    def take_rest(self) -> bytes:
        """The bytes behind the last value, which are then no longer the decoder's."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._end = ValueEnd(self._limits.depth)
        return rest
