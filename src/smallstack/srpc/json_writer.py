"""From typed values to what a JSON text holds: a function for each type, made at its first use."""

import binascii
from collections.abc import Callable
from typing import Any

from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.kinds import Hash, Message, Time, Word
from smallstack.proto.records import to_record
from smallstack.srpc.errors import LocalProtocolError
from smallstack.srpc.schema import Field, Node, node_of

_Convert = Callable[[Any], Any]

_writers: dict[Node, _Convert] = {}


def writer(node: Node) -> _Convert:
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
            elem = writer(node.elem)
            return _checked(node, (list, tuple), lambda value: [elem(part) for part in value])
        case "map":
            return _map_writer(node)
        case "struct":
            return _checked(node, node.cls, _struct_writer(node))
        case "interface":
            return _interface_writer(node)
        case _:
            record = writer(node_of(FileSystemRecord))
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
    key, elem = writer(node.key), writer(node.elem)

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
            writer(field.node),
            field.omit_empty and field.node.kind not in {"struct", "time", "hash", "tree"},
        )
        for field in node.fields
    ]

    def write(value: Message) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field, attribute, convert, omit in plan:
            part = getattr(value, attribute)
            if field.nullable or field.node.kind == "interface":
                if part is None:
                    if not field.omit_empty:
                        made[field.wire_name] = None
                    continue
            elif omit and not part:
                continue
            if field.embedded:
                for name, inner in convert(part).items():
                    made.setdefault(name, inner)
            else:
                made[field.wire_name] = convert(part)
        return made

    return write


def _interface_writer(node: Node) -> _Convert:
    writers = {member.cls: writer(member) for member in node.members.values()}

    def write(value: Any) -> Any:
        if value is None:
            return None
        found = writers.get(type(value))
        if found is None:
            raise _refused(node, value)
        return found(value)

    return write
