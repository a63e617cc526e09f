"""What the codecs know of a message type, read once from its annotations.

A :class:`Node` describes one type: its kind, its name in upstream's language (which goes over the
wire in type definitions), and its parts. Codecs compile their own plans from these.
"""

import typing
from enum import IntEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from smallstack.proto.filesystem import FileSystem, FileSystemRecord
from smallstack.proto.kinds import (
    EMBEDDED,
    OMIT_EMPTY,
    POINTER,
    Hash,
    Mark,
    Message,
    Named,
    Time,
    Wire,
)


class Node(msgspec.Struct, eq=False):
    """One type.

    ``kind`` is one of bool, int, uint, string, bytes, ip, enum, time, hash, list, map, struct,
    interface, tree. ``go`` names the type inside other types (``[]net.IP``), ``name`` is its own
    declared name or "". A node's identity is its ``go``: equal names share one node.
    """

    kind: str
    go: str
    name: str = ""
    cls: Any = None
    bits: int = 64
    key: "Node | None" = None
    elem: "Node | None" = None
    elem_pointer: bool = False
    fields: "list[Field]" = []
    members: "dict[str, Node]" = {}


class Field(msgspec.Struct, eq=False):
    """One field of a struct node; ``nullable`` fields hold None when nothing is pointed at."""

    attribute: str
    wire_name: str
    node: Node
    nullable: bool
    embedded: bool
    omit_empty: bool


_SCALARS: Final = {bool: ("bool", "bool"), str: ("string", "string"), int: ("int", "int")}
_BITS: Final = {"int16": 16, "int32": 32, "uint8": 8, "uint16": 16, "uint32": 32}

_nodes: dict[object, Node] = {}
_by_go: dict[str, Node] = {}


def node_of(annotation: Any) -> Node:
    """The node of a message class or annotation; raises TypeError for one that cannot travel."""
    try:
        return _nodes[annotation]
    except KeyError:
        pass
    except TypeError:
        return _build(annotation)
    node = _nodes[annotation] = _build(annotation)
    return node


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    marks: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *found = get_args(annotation)
        marks += found
    return annotation, marks


def _build(annotation: Any) -> Node:
    bare, marks = _unwrap(annotation)
    wire = next((mark for mark in marks if isinstance(mark, Wire)), None)
    named = next((mark for mark in marks if isinstance(mark, Named)), None)
    if wire is not None:
        kind = wire.kind.rstrip("0123456789")
        node = Node(
            kind,
            wire.go,
            wire.go.rpartition(".")[2] if "[" not in wire.go else "",
            bare,
            bits=_BITS.get(wire.kind, 64),
        )
        if kind == "interface":
            for member in get_args(bare):
                if member is not NoneType:
                    below = node_of(member)
                    node.members[f"*{below.go}"] = below
    elif bare in _SCALARS:
        kind, go = _SCALARS[bare]
        node = Node(kind, go, go, bare)
    elif bare is bytes:
        node = Node("bytes", "[]uint8")
    elif bare is Time:
        node = Node("time", "time.Time", "Time", Time)
    elif bare is Hash:
        node = Node("hash", "hash.Hash", "Hash", Hash)
    elif bare is FileSystem:
        record = node_of(FileSystemRecord)
        return Node("tree", record.go, record.name, FileSystem, fields=record.fields)
    elif isinstance(bare, type) and issubclass(bare, IntEnum):
        node = Node("enum", f"hypervisor.{bare.__name__}", bare.__name__, bare)
    elif isinstance(bare, type) and issubclass(bare, Message):
        return _struct(bare)
    elif get_origin(bare) is list:
        elem, pointer = _element(get_args(bare)[0])
        go = f"[]{'*' if pointer else ''}{elem.go}"
        node = Node("list", go, elem=elem, elem_pointer=pointer)
    elif get_origin(bare) is dict:
        key = node_of(get_args(bare)[0])
        elem, pointer = _element(get_args(bare)[1])
        go = f"map[{key.go}]{'*' if pointer else ''}{elem.go}"
        node = Node("map", go, key=key, elem=elem, elem_pointer=pointer)
    else:
        raise TypeError(f"{annotation!r} cannot travel")
    if named is not None:
        node.go, node.name = f"{named.package}.{named.name}", named.name
    known = _by_go.setdefault(f"{node.kind} {node.go}", node)
    return known if known.cls is node.cls else node


def _element(annotation: Any) -> tuple[Node, bool]:
    bare, marks = _unwrap(annotation)
    del bare
    pointer = POINTER in [mark for mark in marks if isinstance(mark, Mark)]
    return node_of(annotation), pointer


def _struct(cls: type[Message]) -> Node:
    if cls in _nodes:
        return _nodes[cls]
    name = cls.go_type or cls.__name__
    node = Node("struct", f"{cls.go_package}.{name}", name, cls)
    _nodes[cls] = node
    hints = typing.get_type_hints(cls, include_extras=True)
    for info in msgspec.structs.fields(cls):
        bare, marks = _unwrap(hints[info.name])
        nullable = False
        annotation = hints[info.name]
        if get_origin(bare) in {Union, UnionType} and not any(
            isinstance(mark, Wire) for mark in marks
        ):
            parts = [part for part in get_args(bare) if part is not NoneType]
            if len(parts) != 1:
                raise TypeError(f"{cls.__name__}.{info.name}: a union cannot travel")
            nullable = True
            annotation = parts[0]
        node.fields.append(
            Field(
                info.name,
                info.encode_name,
                node_of(annotation),
                nullable,
                EMBEDDED in marks,
                OMIT_EMPTY in marks,
            )
        )
    return node
