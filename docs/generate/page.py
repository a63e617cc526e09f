"""``docs/api.md``: every method, message, record, enumeration and error on one page."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import smallstack
from docs.generate import facts
from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.methods import Method, Shape
from smallstack.srpc.schema import Field, Node, node_of
from smallstack.telemetry.errors import SmallStackError

INTRODUCTION: Final = """\
# The API: methods, messages, errors

Made by `./dev docs` from the message types; do not edit it. The same for programs, as OpenAPI 3.1
with JSON Schema: [api.json](api.json). Python has a typed client of all of it,
`smallstack.client`; any other language calls in JSON, see [json.md](json.md).

A method is called by its full name, `Hypervisor.ListVMs`. How the messages of a call go:

| how | what |
|---|---|
| request-reply | one request, one reply; the server's error line in between is an error |
| stream | one request, then whatever the descriptions say: several replies, raw bytes, lines |

A field `Error` (`ErrorString`, `ResponseString`) that is not empty says why a method did not do
what was asked. Fields of upstream's name that are left out, or null in JSON, are zero; unknown ones
are skipped. JSON leaves fields marked with ° out when they are empty.

| type | in JSON | in Python |
|---|---|---|
| `int`, `uint`, with their bits | a number | `int` |
| `time.Duration` | a number: nanoseconds | `int` |
| `string` | text | `str` |
| `[]uint8` | base64 | `bytes` |
| `net.IP` | text, empty for none | `str` |
| `time.Time` | RFC 3339; year 1 for none | `smallstack.proto.kinds.Time` |
| `hash.Hash` | 128 hexadecimal digits | `smallstack.proto.kinds.Hash`, 64 bytes |
| an enumeration | a word | its class in `smallstack.proto.enums` |
| a list | an array | `list` |
| a map | an object | `dict` |
| a record | an object | its class |
| `filesystem.FileSystem` | an object | `smallstack.proto.filesystem.FileSystem`, packed |
"""

_ROOMS: Final = ("cli", "control", "steps", "settings")
"""Whose errors no caller of a daemon sees."""


def document() -> str:
    """The text of docs/api.md."""
    nodes = facts.all_nodes()
    structs = {go: node for go, node in nodes.items() if node.kind != "enum"}
    enums = {go: node for go, node in nodes.items() if node.kind == "enum"}
    lines = [INTRODUCTION]
    for service, methods in facts.services().items():
        lines += _service(service, methods)
    lines += ["## Messages and records", ""]
    for node in structs.values():
        lines += _struct(node)
    lines += ["## Enumerations", "", "Numbers in gob, words in JSON.", ""]
    for node in enums.values():
        lines += _enum(node)
    lines += _errors()
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


def _link(node: Node) -> str:
    return f"[{node.go}](#{node.go.replace('.', '').lower()})"


def _service(service: str, methods: Sequence[Method]) -> Iterator[str]:
    client = facts.CLIENTS.get(service)
    yield f"## {service or 'The protocol itself'}"
    yield ""
    if client is not None:
        yield f"In Python `{client.__module__}.{client.__name__}`; its methods are in brackets."
        yield ""
    rows = []
    for method in methods:
        name = f"`{method.short_name}`"
        if client is not None and hasattr(client, facts.client_method(method)):
            name += f" (`{facts.client_method(method)}`)"
        request, reply = facts.own_request(method), method.response
        rows.append(
            (
                name,
                facts.summary(method),
                _link(node_of(request)) if request else "",
                _link(node_of(reply)) if reply else "",
                "request-reply" if method.shape is Shape.REQUEST_REPLY else "stream",
                facts.rights(method),
            )
        )
    yield from _table(("method", "what", "request", "reply", "how", "who may"), rows)


def _struct(node: Node) -> Iterator[str]:
    cls = FileSystemRecord if node.kind == "tree" else node.cls
    yield f"### {node.go}"
    yield ""
    yield facts.doc_of(cls)
    yield ""
    if not node.fields:
        yield "No fields."
        yield ""
        return
    yield from _table(
        ("field", "in Python", "type", "unit", "what"),
        (
            (
                f"`{field.wire_name}`{'°' if field.omit_empty else ''}",
                f"`{field.attribute}`",
                _type(field),
                facts.unit_of(field),
                _what(cls, field),
            )
            for field in node.fields
        ),
    )


def _what(cls: type, field: Field) -> str:
    doc = facts.doc_of_field(cls, field.attribute)
    if not field.embedded:
        return doc
    return f"JSON has its fields beside the others. {doc}".rstrip()


def _type(field: Field) -> str:
    text = _type_of(field.node)
    return f"{text} or nothing" if field.nullable else text


def _type_of(node: Node) -> str:
    if node.kind in {"struct", "enum", "tree"}:
        return _link(node)
    if node.kind == "list" and node.elem is not None:
        return f"list of {_type_of(node.elem)}"
    if node.kind == "map" and node.key is not None and node.elem is not None:
        return f"map of {_type_of(node.key)} to {_type_of(node.elem)}"
    if node.kind == "interface":
        return " or ".join(_link(member) for member in node.members.values())
    return f"`{node.go}`"


def _enum(node: Node) -> Iterator[str]:
    yield f"### {node.go}"
    yield ""
    yield facts.doc_of(node.cls)
    yield ""
    yield from _table(
        ("number", "word", "in Python"),
        ((str(int(m)), m.text, f"`{node.name}.{m.name}`") for m in node.cls),
    )


def _errors() -> Iterator[str]:
    yield "## Errors"
    yield ""
    yield (
        "What daemons and clients say, one line each; words in braces are filled in. A client in "
        "Python gets a daemon's as `smallstack.client.errors.ServiceError`, or as "
        "`smallstack.srpc.errors.CallError` where a method's reply has no field for it; the others "
        "are raised by the classes named here."
    )
    yield ""
    rows: dict[str, list[tuple[str, str]]] = {}
    for cls in _error_classes():
        room = cls.__module__.split(".")[1]
        if cls.template.strip("{}").isidentifier():
            continue  # another's text, as it is
        rows.setdefault(room, []).append(
            (f"`{cls.template}`", f"`{cls.__module__}.{cls.__name__}`")
        )
    for room in sorted(rows):
        yield f"### Errors of {room}"
        yield ""
        yield from _table(("text", "class"), sorted(rows[room]))


def _error_classes() -> list[type[SmallStackError]]:
    for found in pkgutil.walk_packages(smallstack.__path__, "smallstack."):
        if found.name.split(".")[1] not in _ROOMS and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    classes: list[type[SmallStackError]] = []
    waiting = [SmallStackError]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        classes += below
    return sorted(
        (
            cls
            for cls in set(classes)
            if cls.__module__.startswith("smallstack.")
            and cls.__module__.split(".")[1] not in _ROOMS
        ),
        key=lambda cls: (cls.__module__, cls.__name__),
    )
