"""gob, slow and obvious: what the fast codec is held against.

Written from the format's description, one function for one thing, nothing cached, nothing
bounded. It shares with the codec under test only ``schema``, which says what a message is.
"""

import ipaddress
from typing import Any

from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.kinds import YEAR_ONE, Hash, Time
from smallstack.proto.records import from_record, to_record
from smallstack.srpc.schema import Node, node_of

BUILTIN = {
    "bool": 1,
    "int": 2,
    "uint": 3,
    "enum": 3,
    "bytes": 5,
    "ip": 5,
    "string": 6,
    "interface": 8,
}


class BadStreamError(Exception):
    """The stream is not valid."""


# ---- writing -----------------------------------------------------------------------------------


def uint(value: int) -> bytes:
    if value < 128:
        return bytes([value])
    size = (value.bit_length() + 7) // 8
    return bytes([256 - size]) + value.to_bytes(size, "big")


def integer(value: int) -> bytes:
    return uint(2 * value if value >= 0 else 2 * ~value + 1)


def string(value: bytes) -> bytes:
    return uint(len(value)) + value


def text(value: str) -> bytes:
    return string(value.encode("utf-8", "surrogateescape"))


def message(body: bytes) -> bytes:
    return uint(len(body)) + body


def structure(*fields: bytes | None) -> bytes:
    """Fields in order, None for those left out."""
    out, last = b"", -1
    for number, field in enumerate(fields):
        if field is not None:
            out += uint(number - last) + field
            last = number
    return out + b"\0"


def encode(value: Any, type_: Any = None) -> bytes:
    """One value from a fresh encoder."""
    return ReferenceEncoder().encode(value, type_)


class ReferenceEncoder:
    def __init__(self, first_id: int = 64) -> None:
        self.ids: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.sent: set[str] = set()
        self.next_id = first_id
        self.done = b""
        self.current = b""

    def encode(self, value: Any, type_: Any = None) -> bytes:
        self.done = self.current = b""
        node = node_of(type(value) if type_ is None else type_)
        for body in self.definitions(node):
            self.done += message(body)
        self.current = integer(self.number(node, node.name))
        if node.kind not in {"struct", "tree"}:
            self.current += b"\0"
        rest = self.value(node, value, outermost=True)
        return self.done + message(self.current + rest)

    def number(self, node: Node, name: str) -> int:
        if node.kind in BUILTIN:
            return BUILTIN[node.kind]
        if node.go in self.ids:
            return self.ids[node.go]
        self.names[node.go] = name
        first = node.kind in {"struct", "tree", "time"}
        if first:
            self.ids[node.go] = self.next_id
            self.next_id += 1
        for field in node.fields:
            self.number(field.node, field.node.name or field.node.go)
        if node.key is not None:
            self.number(node.key, "")
        if node.elem is not None:
            named = node.kind == "list" and not node.elem_pointer
            self.number(node.elem, node.elem.name if named else "")
        if not first:
            self.ids[node.go] = self.next_id
            self.next_id += 1
        return self.ids[node.go]

    def definitions(self, node: Node) -> list[bytes]:
        self.number(node, node.name)
        if node.kind in BUILTIN or node.go in self.sent:
            return []
        self.sent.add(node.go)
        number = self.ids[node.go]
        name = self.names[node.go]
        common = structure(text(name) if name else None, integer(number))
        parts = [field.node for field in node.fields]
        parts += [part for part in (node.key, node.elem) if part is not None]
        ids = [integer(self.number(part, "")) for part in parts]
        kinds: list[bytes | None] = [None] * 7
        if node.kind in {"struct", "tree"}:
            fields = [
                structure(text(field.wire_name), number_)
                for field, number_ in zip(node.fields, ids, strict=True)
            ]
            kinds[2] = structure(common, uint(len(fields)) + b"".join(fields) if fields else None)
        elif node.kind == "list":
            kinds[1] = structure(common, ids[0])
        elif node.kind == "map":
            kinds[3] = structure(common, *ids)
        elif node.kind == "hash":
            kinds[0] = structure(common, integer(3), integer(64))
        else:
            kinds[4] = structure(common)
        found = [integer(-number) + structure(*kinds)]
        for part in parts:
            found += self.definitions(part)
        return found

    def value(self, node: Node, value: Any, *, outermost: bool = False) -> bytes:
        """The bytes of a value; what is outermost may be cut by definitions on the way.

        ``outermost`` values are returned piece by piece: everything written before a definition
        has gone to ``done`` by then, so only the rest comes back.
        """
        if not outermost:
            return self.plain(node, value)
        pieces = _Pieces(self)
        self.write(node, value, pieces)
        return pieces.rest()

    def plain(self, node: Node, value: Any) -> bytes:
        pieces = _Pieces(None)
        self.write(node, value, pieces)
        return pieces.rest()

    def write(self, node: Node, value: Any, out: "_Pieces") -> None:
        match node.kind:
            case "bool" | "uint" | "enum":
                out.add(uint(int(value)))
            case "int":
                out.add(integer(value))
            case "string":
                out.add(text(value))
            case "bytes":
                out.add(string(value))
            case "ip":
                out.add(string(ipaddress.ip_address(value).packed if value else b""))
            case "time":
                out.add(string(binary_time(value)))
            case "hash":
                out.add(uint(64) + b"".join(uint(byte) for byte in value))
            case "list":
                assert node.elem is not None
                out.add(uint(len(value)))
                for part in value:
                    self.write(node.elem, part, out)
            case "map":
                assert node.key is not None
                assert node.elem is not None
                out.add(uint(len(value)))
                for key in sorted(value, key=_raw):
                    self.write(node.key, key, out)
                    self.write(node.elem, value[key], out)
            case "struct":
                last = -1
                for number, field in enumerate(node.fields):
                    part = getattr(value, field.attribute)
                    if self.left_out(field.node, part, field.nullable):
                        continue
                    out.add(uint(number - last))
                    last = number
                    self.write(field.node, part, out)
                out.add(b"\0")
            case "tree":
                record = to_record(value)
                self.write(node_of(type(record)), record, out)
            case "interface":
                self.write_interface(node, value, out)

    @staticmethod
    def left_out(node: Node, value: Any, nullable: bool) -> bool:
        if nullable or node.kind == "interface":
            return value is None
        if node.kind in {"struct", "tree", "hash"}:
            return False
        if node.kind == "time":
            return bool(value == Time())
        return not value

    def write_interface(self, node: Node, value: Any, out: "_Pieces") -> None:
        if value is None:
            out.add(b"\0")
            return
        name, member = next(
            (name, member) for name, member in node.members.items() if member.cls is type(value)
        )
        out.add(text(name))
        out.define(self.definitions(member))
        out.add(integer(self.number(member, member.name)))
        out.add(message(self.plain(member, value)))


def _raw(key: Any) -> Any:
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key


class _Pieces:
    """The value written so far, and where its messages go when a definition cuts it."""

    def __init__(self, encoder: ReferenceEncoder | None) -> None:
        self.encoder = encoder
        self.pieces: list[bytes] = []

    def add(self, data: bytes) -> None:
        self.pieces.append(data)

    def define(self, bodies: list[bytes]) -> None:
        if not bodies:
            return
        assert self.encoder is not None, "definitions inside an interface value"
        encoder = self.encoder
        encoder.done += message(encoder.current + self.rest() + bodies[0])
        encoder.done += b"".join(message(body) for body in bodies[1:])
        encoder.current = b""

    def rest(self) -> bytes:
        joined = b"".join(self.pieces)
        self.pieces.clear()
        return joined


def binary_time(value: Time) -> bytes:
    zone = -1 if value.zone_minutes is None else value.zone_minutes
    return (
        b"\1"
        + (value.unix_seconds - YEAR_ONE).to_bytes(8, "big", signed=True)
        + value.nanoseconds.to_bytes(4, "big")
        + zone.to_bytes(2, "big", signed=True)
    )


# ---- reading -----------------------------------------------------------------------------------


WANTED = {
    "enum": "uint",
    "ip": "bytes",
    "time": "opaque",
    "hash": "array",
    "list": "slice",
    "tree": "struct",
}


class WireType:
    """A definition as it came: which of the seven kinds, and its parts."""

    def __init__(self) -> None:
        self.kind = ""
        self.name = ""
        self.elem = 0
        self.key = 0
        self.length = 0
        self.fields: list[tuple[str, int]] = []


class ReferenceDecoder:
    """Reads values from a whole stream."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.data = b""
        self.types: dict[int, WireType] = {}

    def decode(self, type_: Any) -> Any:
        node = node_of(type_)
        self.data = b""
        number = self.type_sequence()
        if number < 0 or (number >= 64 and number not in self.types):
            raise BadStreamError(number)
        if self.kind_of(number) != "struct" and self.uint() != 0:
            raise BadStreamError("no singleton")
        value = self.read(node, number)
        if self.data:
            raise BadStreamError("bytes behind the value")
        return value

    # -- bytes

    def next_message(self) -> None:
        self.data, self.stream = self.stream, b""
        length = self.uint()
        if length == 0 or length > len(self.data):
            raise BadStreamError("no whole message")
        self.data, self.stream = self.data[:length], self.data[length:]

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise BadStreamError("message too short")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def uint(self) -> int:
        first = self.take(1)[0]
        if first < 128:
            return first
        if 256 - first > 8:
            raise BadStreamError("number too long")
        return int.from_bytes(self.take(256 - first), "big")

    def integer(self) -> int:
        value = self.uint()
        return ~(value >> 1) if value & 1 else value >> 1

    def string(self) -> bytes:
        return self.take(self.uint())

    # -- types

    def type_sequence(self, *, inside: bool = False) -> int:
        while True:
            if not self.data:
                self.next_message()
            number = self.integer()
            if number >= 0:
                return number
            self.types[-number] = self.definition()
            if self.data:
                if not inside:
                    raise BadStreamError("bytes behind a definition")
                self.uint()

    def definition(self) -> WireType:
        found = WireType()
        which = 0
        while delta := self.uint():
            which += delta
            if found.kind:
                raise BadStreamError("two kinds")
            found.kind = [
                "",
                "array",
                "slice",
                "struct",
                "map",
                "opaque",
                "opaque",
                "opaque",
            ][which]
            self.definition_body(found)
        if not found.kind:
            raise BadStreamError("no kind")
        return found

    def definition_body(self, found: WireType) -> None:
        field = 0
        while delta := self.uint():
            field += delta
            if field == 1:
                self.common(found)
            elif found.kind == "struct" and field == 2:
                found.fields = [self.field() for _ in range(self.uint())]
            elif found.kind == "map" and field == 2:
                found.key = self.integer()
            elif found.kind == "array" and field == 3:
                found.length = self.integer()
            elif found.kind in {"array", "slice", "map"} and field in {2, 3}:
                found.elem = self.integer()
            else:
                raise BadStreamError("unknown part of a definition")

    def common(self, found: WireType) -> None:
        field = 0
        while delta := self.uint():
            field += delta
            if field == 1:
                found.name = self.string().decode("utf-8", "surrogateescape")
            else:
                self.integer()

    def field(self) -> tuple[str, int]:
        name, number, at = "", 0, 0
        while delta := self.uint():
            at += delta
            if at == 1:
                name = self.string().decode("utf-8", "surrogateescape")
            else:
                number = self.integer()
        return name, number

    def kind_of(self, number: int) -> str:
        names = {
            1: "bool",
            2: "int",
            3: "uint",
            4: "float",
            5: "bytes",
            6: "string",
            7: "complex",
            8: "interface",
        }
        if number in names:
            return names[number]
        if number not in self.types:
            raise BadStreamError(f"type {number} is not defined")
        return self.types[number].kind

    # -- values

    def read(self, node: Node, number: int) -> Any:
        if self.kind_of(number) != WANTED.get(node.kind, node.kind):
            raise BadStreamError(f"{node.go} is sent as {self.kind_of(number)}")
        match node.kind:
            case "bool":
                return bool(self.uint())
            case "int":
                return self.integer()
            case "uint":
                return self.uint()
            case "enum":
                return node.cls(self.uint())
            case "string":
                return self.string().decode("utf-8", "surrogateescape")
            case "bytes":
                return self.string()
            case "ip":
                return self.address()
            case "time":
                return self.time()
            case "hash":
                if self.uint() != 64:
                    raise BadStreamError("no digest")
                return Hash(bytes(self.uint() for _ in range(64)))
            case "list":
                assert node.elem is not None
                elem = self.types[number].elem
                return [self.read(node.elem, elem) for _ in range(self.uint())]
            case "map":
                assert node.key is not None
                assert node.elem is not None
                found = {}
                for _ in range(self.uint()):
                    key = self.read(node.key, self.types[number].key)
                    found[key] = self.read(node.elem, self.types[number].elem)
                return found
            case "interface":
                name = self.string().decode("utf-8", "surrogateescape")
                if not name:
                    return None
                inner = self.type_sequence(inside=True)
                self.uint()
                return self.read(node.members[name], inner)
            case "tree":
                return from_record(self.structure(node_of(FileSystemRecord), number))
            case _:
                return self.structure(node, number)

    def structure(self, node: Node, number: int) -> Any:
        wanted = {field.wire_name: field for field in node.fields}
        found = {}
        at = -1
        while delta := self.uint():
            at += delta
            if at >= len(self.types[number].fields):
                raise BadStreamError("no such field")
            name, type_ = self.types[number].fields[at]
            field = wanted.get(name)
            if field is None:
                self.skip(type_)
            else:
                found[field.attribute] = self.read(field.node, type_)
        return node.cls(**found)

    def skip(self, number: int) -> None:
        match self.kind_of(number):
            case "bool" | "int" | "uint" | "float":
                self.uint()
            case "complex":
                self.uint()
                self.uint()
            case "bytes" | "string" | "opaque":
                self.string()
            case "array" | "slice":
                for _ in range(self.uint()):
                    self.skip(self.types[number].elem)
            case "map":
                for _ in range(self.uint()):
                    self.skip(self.types[number].key)
                    self.skip(self.types[number].elem)
            case "struct":
                at = -1
                while delta := self.uint():
                    at += delta
                    if at >= len(self.types[number].fields):
                        raise BadStreamError("no such field")
                    self.skip(self.types[number].fields[at][1])
            case _:
                if self.string():
                    inner = self.type_sequence(inside=True)
                    self.uint()
                    if self.kind_of(inner) != "struct":
                        self.uint()
                    self.skip(inner)

    def address(self) -> str:
        raw = self.string()
        if not raw:
            return ""
        address = ipaddress.ip_address(raw)
        mapped = getattr(address, "ipv4_mapped", None)
        return str(mapped or address)

    def time(self) -> Time:
        raw = self.string()
        zone = int.from_bytes(raw[13:15], "big", signed=True)
        return Time(
            int.from_bytes(raw[1:9], "big", signed=True) + YEAR_ONE,
            int.from_bytes(raw[9:13], "big"),
            None if zone == -1 else zone,
        )


def renumber(stream: bytes) -> bytes:
    """The stream with its types numbered anew, in the order of their definitions.

    All that a process sent before decides a type's id, and whether a list or map type that has no
    name is called by its description (``[]string``) or not at all; nothing else of the bytes
    depends on it. So these descriptions are taken out. For values without interfaces.
    """
    reader = ReferenceDecoder(stream)
    numbers: dict[int, int] = {}
    messages: list[tuple[int, bytes]] = []
    while reader.stream:
        reader.next_message()
        number = reader.integer()
        messages.append((number, reader.data))
        if number < 0:
            numbers[-number] = 1000 + len(numbers)
    out = b""
    for number, data in messages:
        if number >= 0:
            out += message(integer(numbers.get(number, number)) + data)
            continue
        reader.data = data
        found = reader.definition()

        def new(old: int) -> bytes:
            return integer(numbers.get(old, old))

        name = "" if found.name.startswith(("[", "map[")) else found.name
        common = structure(text(name) if name else None, new(-number))
        kinds: list[bytes | None] = [None] * 7
        match found.kind:
            case "array":
                kinds[0] = structure(common, new(found.elem), integer(found.length))
            case "slice":
                kinds[1] = structure(common, new(found.elem))
            case "struct":
                fields = [structure(text(field), new(type_)) for field, type_ in found.fields]
                kinds[2] = structure(
                    common, uint(len(fields)) + b"".join(fields) if fields else None
                )
            case "map":
                kinds[3] = structure(common, new(found.key), new(found.elem))
            case _:
                kinds[4] = structure(common)
        out += message(integer(-numbers[-number]) + structure(*kinds))
    return out
