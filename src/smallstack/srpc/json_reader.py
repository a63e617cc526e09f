"""From what a JSON text holds to typed values: a function for each type, made at its first use."""

import binascii
import re
import socket
from collections.abc import Callable
from typing import Any, Final

from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.kinds import HASH_SIZE, Hash, Time
from smallstack.proto.records import from_record
from smallstack.srpc.errors import JsonError
from smallstack.srpc.schema import Node, node_of

_Convert = Callable[[Any], Any]

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
"""What IPv4 addresses of 16 bytes start with."""

INTERFACE_KEYS: Final = (
    ("symlink", "SymlinkInode"),
    ("rdev", "SpecialInode"),
    ("source", "ComputedRegularInode"),
    ("entrylist", "DirectoryInode"),
    ("size", "RegularInode"),
)
"""Interface values have no tag in JSON; these fields, always present, tell inodes apart."""

_readers: dict[Node, _Convert] = {}


def reader(node: Node) -> _Convert:
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
    elem, zero = reader(node.elem), _zero(node.elem)

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
    elem, zero, key = reader(node.elem), _zero(node.elem), reader(node.key)

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
            embedded.append((field.attribute, reader(field.node)))
        else:
            own[field.wire_name] = own[field.wire_name.lower()] = (
                field.attribute,
                reader(field.node),
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
        for attribute, inner in embedded:
            found[attribute] = inner(value)
        return cls(**found)

    return read


def _interface_reader(node: Node) -> _Convert:
    readers = {member.name: reader(member) for member in node.members.values()}

    def read(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not dict:
            raise _wrong(node, value)
        names = {name.lower() for name in value}
        for key, member in INTERFACE_KEYS:
            if key in names:
                return readers[member](value)
        raise _wrong(node, value)

    return read


def _tree_reader(node: Node) -> _Convert:
    record = reader(node_of(FileSystemRecord))

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
