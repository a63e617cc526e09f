"""JSON, the second coder of SRPC: one value and a line feed each way.

Enumerations are words, addresses and times text, bytes base64, durations nanoseconds; embedded
structures lie flat in the object around them. Names of fields are matched in any case, unknown
ones are skipped, and null leaves a field as it is, as upstream's reader does. Where that one sends
null for an empty list, this one sends ``[]``.
"""

import binascii
import re
import socket
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

import msgspec

from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.kinds import HASH_SIZE, Hash, Message, Time, Word
from smallstack.proto.records import from_record, to_record
from smallstack.srpc.coder import DEFAULT, NEED_MORE, Limits, NeedMoreType
from smallstack.srpc.errors import JsonError, LocalProtocolError
from smallstack.srpc.json_end import ValueEnd
from smallstack.srpc.schema import Field, Node, node_of

T = TypeVar("T")

_Convert = Callable[[Any], Any]

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
"""What IPv4 addresses of 16 bytes start with."""

_INTERFACE_KEYS: Final = (
    ("symlink", "SymlinkInode"),
    ("rdev", "SpecialInode"),
    ("source", "ComputedRegularInode"),
    ("entrylist", "DirectoryInode"),
    ("size", "RegularInode"),
)
"""Interface values have no tag in JSON; these fields, always present, tell inodes apart."""


def to_json(value: object, type_: Any = None, *, indent: int = 0) -> bytes:
    """A value as JSON, without a line feed behind it; raises LocalProtocolError.

    ``type_`` is needed where the value's class does not say what it is; ``indent`` in spaces.
    """
    node = node_of(type(value) if type_ is None else type_)
    text = msgspec.json.encode(_writer(node)(value))
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
    made = _reader(node)(loose)
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


# ---- reading -----------------------------------------------------------------------------------

_readers: dict[Node, _Convert] = {}


def _reader(node: Node) -> _Convert:
    """A function from loose values to typed ones; None (null) stays None."""
    found = _readers.get(node)
    if found is None:
        found = _readers[node] = _compile_reader(node)
    return found


def _wrong(node: Node, value: Any) -> JsonError:
    return JsonError(what=f"{repr(value)[:64]} is no value of type {node.go}")


def _compile_reader(node: Node) -> _Convert:
    match node.kind:
        case "bool":
            return _exactly(node, bool)
        case "int":
            bound = 1 << (node.bits - 1)
            return _integer(node, -bound, bound - 1)
        case "uint":
            return _integer(node, 0, (1 << node.bits) - 1)
        case "string":
            return _exactly(node, str)
        case "bytes":
            return _from_text(node, _base64)
        case "ip":
            return _from_text(node, _address)
        case "enum":
            return _from_text(node, node.cls.from_text)
        case "time":
            return _from_text(node, Time.parse)
        case "hash":
            return _from_text(node, _digest)
        case "list":
            return _list_reader(node)
        case "map":
            return _map_reader(node)
        case "struct":
            return _struct_reader(node)
        case "interface":
            return _interface_reader(node)
        case _:
            return _tree_reader(node)


def _exactly(node: Node, cls: type) -> _Convert:
    def read(value: Any) -> Any:
        if value is not None and type(value) is not cls:
            raise _wrong(node, value)
        return value

    return read


def _integer(node: Node, low: int, high: int) -> _Convert:
    def read(value: Any) -> Any:
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise _wrong(node, value)
        return value

    return read


def _from_text(node: Node, convert: Callable[[str], Any]) -> _Convert:
    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not str:
            raise _wrong(node, value)
        try:
            return convert(value)
        except ValueError:
            raise _wrong(node, value) from None

    return read


def _base64(text: str) -> bytes:
    raw = text.translate({10: None, 13: None})
    return binascii.a2b_base64(raw, strict_mode=True) if raw else b""


def _address(text: str) -> str:
    if not text:
        return ""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        raw = socket.inet_pton(family, text)
    except OSError:
        raise ValueError(text) from None
    if raw.startswith(_MAPPED):
        family, raw = socket.AF_INET, raw[len(_MAPPED) :]
    return socket.inet_ntop(family, raw)


def _digest(text: str) -> Hash:
    if len(text) != 2 * HASH_SIZE or not text.isalnum():
        raise ValueError(text)
    return Hash(bytes.fromhex(text))


def _list_reader(node: Node) -> _Convert:
    assert node.elem is not None
    elem, zero = _reader(node.elem), _zero(node.elem)

    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not list:
            raise _wrong(node, value)
        return [zero() if part is None else elem(part) for part in value]

    return read


def _map_reader(node: Node) -> _Convert:
    assert node.elem is not None
    assert node.key is not None
    key_node = node.key
    elem, zero, key = _reader(node.elem), _zero(node.elem), _reader(node.key)

    def read_key(text: str) -> Any:
        if key_node.kind not in {"int", "uint"}:
            return key(text)
        if not re.fullmatch(r"-?[0-9]{1,20}", text):
            raise _wrong(key_node, text)
        return key(int(text))

    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not dict:
            raise _wrong(node, value)
        return {
            read_key(name): zero() if part is None else elem(part) for name, part in value.items()
        }

    return read


def _zero(node: Node) -> Callable[[], Any]:
    """What null stands for in a list or map."""
    match node.kind:
        case "bool":
            return bool
        case "int" | "uint":
            return int
        case "string" | "ip":
            return str
        case "bytes":
            return bytes
        case "enum":
            return lambda: node.cls(0)
        case "list":
            return list
        case "map":
            return dict
        case "interface":
            return lambda: None
        case _:
            cls: Callable[[], Any] = node.cls
            return cls


def _struct_reader(node: Node) -> _Convert:
    """Embedded structures take what belongs to them out of the same object."""
    own: dict[str, tuple[str, _Convert]] = {}
    embedded: list[tuple[str, _Convert]] = []
    for field in node.fields:
        if field.embedded:
            embedded.append((field.attribute, _reader(field.node)))
        else:
            own[field.wire_name] = own[field.wire_name.lower()] = (
                field.attribute,
                _reader(field.node),
            )
    cls = node.cls

    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not dict:
            raise _wrong(node, value)
        found = {}
        for name, part in value.items():
            known = own.get(name) or own.get(name.lower())
            if known is not None:
                made = known[1](part)
                if made is not None:
                    found[known[0]] = made
        for attribute, reader in embedded:
            found[attribute] = reader(value)
        return cls(**found)

    return read


def _interface_reader(node: Node) -> _Convert:
    readers = {member.name: _reader(member) for member in node.members.values()}

    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not dict:
            raise _wrong(node, value)
        names = {name.lower() for name in value}
        for key, member in _INTERFACE_KEYS:
            if key in names:
                return readers[member](value)
        raise _wrong(node, value)

    return read


def _tree_reader(node: Node) -> _Convert:
    record = _reader(node_of(FileSystemRecord))

    def read(value: Any) -> Any:
        if value is None:
            return None
        try:
            return from_record(record(value))
        except TreeError as error:
            raise JsonError(what=str(error)) from None
        except ValueError:
            raise _wrong(node, value) from None

    return read


# ---- writing -----------------------------------------------------------------------------------

_writers: dict[Node, _Convert] = {}


def _writer(node: Node) -> _Convert:
    """A function from typed values to what JSON knows."""
    found = _writers.get(node)
    if found is None:
        found = _writers[node] = _compile_writer(node)
    return found


def _refused(node: Node, value: Any) -> LocalProtocolError:
    return LocalProtocolError(what=f"{repr(value)[:100]} is no value of type {node.go}")


def _checked(node: Node, classes: type | tuple[type, ...], convert: _Convert) -> _Convert:
    def write(value: Any) -> Any:
        if not isinstance(value, classes):
            raise _refused(node, value)
        try:
            return convert(value)
        except ValueError:
            raise _refused(node, value) from None

    return write


def _compile_writer(node: Node) -> _Convert:
    match node.kind:
        case "bool":
            return _checked(node, bool, bool)
        case "int" | "uint":
            return _integer_writer(node)
        case "string" | "ip":
            return _checked(node, str, _clean)
        case "bytes":
            return _checked(
                node,
                (bytes, bytearray, memoryview),
                lambda value: binascii.b2a_base64(value, newline=False).decode(),
            )
        case "enum":
            return _checked(node, int, lambda value: _word(node.cls(value)))
        case "time":
            return _checked(node, Time, Time.rfc3339)
        case "hash":
            return _checked(node, bytes, lambda value: Hash(value).hex())
        case "list":
            assert node.elem is not None
            elem = _writer(node.elem)
            return _checked(node, (list, tuple), lambda value: [elem(part) for part in value])
        case "map":
            return _map_writer(node)
        case "struct":
            return _checked(node, node.cls, _struct_writer(node))
        case "interface":
            return _interface_writer(node)
        case _:
            record = _writer(node_of(FileSystemRecord))
            return _checked(node, node.cls, lambda value: record(to_record(value)))


def _integer_writer(node: Node) -> _Convert:
    low = -1 << (node.bits - 1) if node.kind == "int" else 0
    high = (1 << (node.bits - (node.kind == "int"))) - 1

    def write(value: Any) -> Any:
        if not isinstance(value, int) or not low <= value <= high:
            raise _refused(node, value)
        return int(value)

    return write


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: bytes that were none become the replacement character."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _word(value: Word) -> str:
    if not value.is_known:
        raise ValueError(value)
    return value.text


def _map_writer(node: Node) -> _Convert:
    assert node.key is not None
    assert node.elem is not None
    key, elem = _writer(node.key), _writer(node.elem)

    def write(value: Any) -> Any:
        return {
            name: elem(part)
            for name, part in sorted((str(key(name)), part) for name, part in value.items())
        }

    return _checked(node, dict, write)


def _struct_writer(node: Node) -> _Convert:
    plan: list[tuple[Field, str, _Convert, bool]] = [
        (
            field,
            field.attribute,
            _writer(field.node),
            field.omit_empty and field.node.kind not in {"struct", "time", "hash", "tree"},
        )
        for field in node.fields
    ]

    def write(value: Message) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field, attribute, writer, omit in plan:
            part = getattr(value, attribute)
            if field.nullable or field.node.kind == "interface":
                if part is None:
                    if not field.omit_empty:
                        made[field.wire_name] = None
                    continue
            elif omit and not part:
                continue
            if field.embedded:
                for name, inner in writer(part).items():
                    made.setdefault(name, inner)
            else:
                made[field.wire_name] = writer(part)
        return made

    return write


def _interface_writer(node: Node) -> _Convert:
    writers = {member.cls: _writer(member) for member in node.members.values()}

    def write(value: Any) -> Any:
        if value is None:
            return None
        found = writers.get(type(value))
        if found is None:
            raise _refused(node, value)
        return found(value)

    return write
