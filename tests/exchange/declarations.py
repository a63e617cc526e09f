"""The messages' declarations in Go, written from what the schema says of their types.

A package for each of upstream's, with every type of it that travels, and ``types.go``: a table of
all structures by their full names. ``program/`` is what uses them.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping

import smallstack.proto
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.kinds import Message
from smallstack.srpc.schema import Node, node_of

_BUILT_IN = re.compile(r"(time|net)\.[A-Z]")
_PACKAGE = re.compile(r"\b([a-z]+)\.[A-Za-z]")


def every_message() -> list[type[Message]]:
    """Every message and record of ``smallstack.proto``, but for what they share as a base."""
    for module in pkgutil.walk_packages(smallstack.proto.__path__, "smallstack.proto."):
        importlib.import_module(module.name)
    found: list[type[Message]] = []
    waiting: list[type[Message]] = [Message]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        # A base has no fields and is never sent; an empty reply has nothing below it.
        if cls.__module__.startswith("smallstack.proto.") and not (
            cls.__subclasses__() and not cls.__struct_fields__
        ):
            found.append(cls)
    return sorted(found, key=lambda cls: node_of(cls).go)


def declarations(changed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Go source by path. ``changed`` gives fields, as ``package.Type.Field``, another type."""
    changed = dict(changed or {})
    nodes = _every_node(node_of(type_) for type_ in [*every_message(), FileSystem])
    packages: dict[str, list[str]] = {}
    structures = []
    for go, node in sorted(nodes.items()):
        package, _, name = go.rpartition(".")
        packages.setdefault(package, []).append(f"type {name} {_underlying(node, go, changed)}\n")
        if node.fields or node.kind == "struct":
            structures.append(go)
    assert not changed, f"no such fields: {changed}"
    sources = {
        f"{package}/{package}.go": _package(package, types, structures)
        for package, types in packages.items()
    }
    tables = [f"\t{package}.Types," for package in sorted(packages)]
    sources["types.go"] = (
        "package main\n\n"
        + _imports({"reflect", *(f"exchange/{package}" for package in packages)})
        + "var types = map[string]reflect.Type{}\n\n"
        + "func init() {\n\tfor _, table := range []map[string]reflect.Type{\n\t"
        + "\n\t".join(tables)
        + "\n\t} {\n\t\tfor name, typ := range table {\n\t\t\ttypes[name] = typ\n\t\t}\n\t}\n}\n"
    )
    return sources


def _every_node(nodes: Iterable[Node]) -> dict[str, Node]:
    """The types that have a declaration of their own, by full name."""
    found: dict[str, Node] = {}
    seen: set[int] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        waiting += [part for part in (node.key, node.elem) if part is not None]
        waiting += [field.node for field in node.fields]
        waiting += node.members.values()
        if "." in node.go and node.name and not _BUILT_IN.match(node.go):
            found.setdefault(node.go, node)
    return found


def _underlying(node: Node, go: str, changed: dict[str, str]) -> str:
    match node.kind:
        case "enum":
            return "uint"
        case "int" | "uint":
            return node.kind + ("64" if node.bits == 64 else str(node.bits))
        case "hash":
            return "[64]byte"
        case "interface":
            return "interface{}"
        case "map":
            assert node.key is not None
            assert node.elem is not None
            return f"map[{node.key.go}]{'*' if node.elem_pointer else ''}{node.elem.go}"
        case "list":
            assert node.elem is not None
            return f"[]{'*' if node.elem_pointer else ''}{node.elem.go}"
        case "struct" | "tree":
            lines = []
            for field in node.fields:
                type_ = ("*" if field.nullable else "") + field.node.go
                type_ = changed.pop(f"{go}.{field.wire_name}", type_)
                lines.append(f"\t{type_}" if field.embedded else f"\t{field.wire_name} {type_}")
            return "struct {\n" + "".join(f"{line}\n" for line in lines) + "}"
        case "string":
            return "string"
        case _:
            raise TypeError(f"{go} is a {node.kind}, of which there is no declaration")


def _package(package: str, types: list[str], structures: list[str]) -> str:
    body = "\n".join(types)
    others = set(_PACKAGE.findall(body)) - {package}
    table = "".join(
        f'\t"{go}": reflect.TypeOf({go.rpartition(".")[2]}{{}}),\n'
        for go in structures
        if go.startswith(f"{package}.")
    )
    return (
        f"package {package}\n\n"
        + _imports(
            {"reflect"}
            | {name if name in {"net", "time"} else f"exchange/{name}" for name in others}
        )
        + re.sub(rf"\b{package}\.", "", body)
        + f"\nvar Types = map[string]reflect.Type{{\n{table}}}\n"
    )


def _imports(paths: set[str]) -> str:
    return "import (\n" + "".join(f'\t"{path}"\n' for path in sorted(paths)) + ")\n\n"
