"""``docs/api.json``: the JSON coder's messages as OpenAPI 3.1, with JSON Schema components.

The calls are no HTTP requests: a path names a method, its ``post`` what goes each way inside a
connection that docs/json.md describes. Code generators make types of the components.
"""

import json
from typing import Any, Final

import smallstack
from docs.generate import facts
from smallstack.proto.filesystem import FileSystemRecord
from smallstack.proto.methods import Method, Shape
from smallstack.srpc.json_reader import INTERFACE_KEYS
from smallstack.srpc.schema import Field, Node, node_of

Schema = dict[str, Any]

ABOUT: Final = (
    "Calls travel in a connection of their own, opened by `CONNECT /_SRPC_/TLS/JSON HTTP/1.0`, "
    "not as HTTP requests: docs/json.md tells how. A path here is the name of a method, its "
    "request body the one value that goes to the server, its response what comes back: one value, "
    "or, where the method streams, one a line. `x-shape` says which; `x-rights` who may call. "
    "Names of fields are read in any case, unknown ones are skipped, and what is not there, or "
    "null, is zero. The schemas say what the server writes: a reply has all its required fields, "
    "lists and maps are never null. `x-unit` is what a number counts, `x-go-type` its type on "
    "the wire, `x-attribute` its name in Python."
)

_REPLIES: Final = ("Response", "Update")
"""How messages are called that only a server sends: their fields are required."""

_WORDS: Final[dict[str, Schema]] = {
    "bool": {"type": "boolean"},
    "string": {"type": "string"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "ip": {"$ref": "#/components/schemas/IP"},
    "time": {"type": "string", "format": "date-time"},
    "hash": {"$ref": "#/components/schemas/Hash"},
}

_SIMPLE: Final[dict[str, Schema]] = {
    "IP": {
        "description": "An IP address as text; empty is none.",
        "anyOf": [{"const": ""}, {"format": "ipv4"}, {"format": "ipv6"}],
        "type": "string",
    },
    "Hash": {
        "description": "A SHA-512 in hexadecimal digits.",
        "type": "string",
        "pattern": "^[0-9a-f]{128}$",
    },
}


def document() -> str:
    """The text of docs/api.json."""
    return json.dumps(openapi(), indent=1, ensure_ascii=False) + "\n"


def openapi() -> Schema:
    """The whole description."""
    paths = {
        f"/{method.name}": {"post": _operation(method)}
        for methods in facts.services().values()
        for method in methods
        if method.service
    }
    components = dict(_SIMPLE)
    for go, node in facts.all_nodes().items():
        if go.startswith("srpc."):
            continue  # the move to a Unix socket goes in gob only
        components[name_of(node)] = _enum(node) if node.kind == "enum" else _struct(node)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "SmallStack, by the JSON coder",
            "version": smallstack.__version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "tags": [{"name": service} for service in facts.CLIENTS],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def name_of(node: Node) -> str:
    """The name of a component: the type's own, with its package where two packages have it."""
    return node.name if node.name not in _AMBIGUOUS else node.go.replace(".", "_")


def _operation(method: Method) -> Schema:
    made: Schema = {
        "operationId": method.name,
        "tags": [method.service],
        "summary": facts.summary(method),
        "x-shape": method.shape.value,
        "x-rights": facts.rights(method),
    }
    request = facts.own_request(method)
    if request is not None:
        made["requestBody"] = {"content": {"application/json": {"schema": _ref(node_of(request))}}}
    reply: Schema = {"description": "The lines or bytes that the method sends; see docs/api.md."}
    if method.response is not None:
        several = method.shape is not Shape.REQUEST_REPLY
        media = "application/jsonl" if several else "application/json"
        reply = {
            "description": facts.doc_of(method.response) or "The reply.",
            "content": {media: {"schema": _ref(node_of(method.response))}},
        }
    made["responses"] = {"200": reply}
    return made


def _ref(node: Node) -> Schema:
    return {"$ref": f"#/components/schemas/{name_of(node)}"}


def _schema(node: Node) -> Schema:
    """The schema of a value of one type."""
    match node.kind:
        case "int":
            bound = 1 << (node.bits - 1)
            return {"type": "integer", "minimum": -bound, "maximum": bound - 1}
        case "uint":
            return {"type": "integer", "minimum": 0, "maximum": (1 << node.bits) - 1}
        case "list":
            assert node.elem is not None
            return {"type": "array", "items": _schema(node.elem)}
        case "map":
            return _map(node)
        case "struct" | "enum" | "tree":
            return _ref(node)
        case "interface":
            inodes = [_ref(member) for member in node.members.values()]
            return {"oneOf": [*inodes, {"type": "null"}]}
        case _:
            return dict(_WORDS[node.kind])


def _map(node: Node) -> Schema:
    assert node.key is not None
    assert node.elem is not None
    made: Schema = {"type": "object", "additionalProperties": _schema(node.elem)}
    if node.key.kind in {"int", "uint"}:
        made["propertyNames"] = {"pattern": "^[0-9]{1,20}$"}
    return made


def _struct(node: Node) -> Schema:
    cls = FileSystemRecord if node.kind == "tree" else node.cls
    made: Schema = {"description": facts.doc_of(cls), "type": "object", "x-go-type": node.go}
    embedded = [_ref(field.node) for field in node.fields if field.embedded]
    if embedded:
        made["allOf"] = embedded
    own = [field for field in node.fields if not field.embedded]
    made["properties"] = {field.wire_name: _property(cls, field) for field in own}
    required = _required(node, own)
    if required:
        made["required"] = required
    return made


def _required(node: Node, own: list[Field]) -> list[str]:
    if node.name in _TOLD_BY:
        return [field.wire_name for field in own if field.wire_name.lower() == _TOLD_BY[node.name]]
    if not node.name.endswith(_REPLIES):
        return []
    # What counts as empty is left out, but for structures, times and digests.
    return [
        field.wire_name
        for field in own
        if not field.omit_empty
        or (field.node.kind in {"struct", "time", "hash", "tree"} and not field.nullable)
    ]


def _property(cls: type, field: Field) -> Schema:
    made = _schema(field.node)
    if field.nullable and not field.omit_empty:
        made = {"anyOf": [made, {"type": "null"}]}
    doc, unit = facts.doc_of_field(cls, field.attribute), facts.unit_of(field)
    if doc:
        made["description"] = doc
    if unit:
        made["x-unit"] = unit
    made["x-go-type"] = field.node.go
    made["x-attribute"] = field.attribute
    return made


def _enum(node: Node) -> Schema:
    return {
        "description": facts.doc_of(node.cls),
        "type": "string",
        "enum": [member.text for member in node.cls],
        "x-numbers": [int(member) for member in node.cls],
    }


_TOLD_BY: Final = {member: key for key, member in INTERFACE_KEYS}
"""The field that tells an inode of this kind from the others."""


def _ambiguous() -> set[str]:
    names = [node.name for node in facts.all_nodes().values()]
    return {name for name in names if names.count(name) > 1}


_AMBIGUOUS: Final = _ambiguous()
