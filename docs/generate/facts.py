"""What the code says of its messages: docstrings of fields, units, which types a method needs.

A field's docstring is the string below it in its class; Python drops it, the source has it. A
unit follows from the type or the name: `UNITS` is all the conventions there are.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Final

from smallstack.client.hypervisor import HypervisorClient
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.logger import LoggerClient
from smallstack.client.objectserver import ObjectServerClient
from smallstack.client.service import ServiceClient
from smallstack.proto import srpc
from smallstack.proto.hypervisor import migrate
from smallstack.proto.kinds import Message
from smallstack.proto.methods import METHODS, Method
from smallstack.srpc.schema import Field, Node, node_of

CLIENTS: Final[dict[str, type[ServiceClient]]] = {
    client.service: client
    for client in (HypervisorClient, ImageServerClient, ObjectServerClient, LoggerClient)
}

UNITS: Final = (
    (r"InMiB$", "MiB"),
    (r"MilliCPUs$", "1/1000 CPU"),
    (r"CPUs$", "CPUs"),
    (r"BytesPerInode$", "bytes per inode"),
    (r"Percentage$", "%"),
    (r"(Bytes(Added)?|Sizes?|Lengths?)$", "bytes"),
    (r"(NanoSeconds|Nanoseconds)$", "ns"),
    (r"Seconds$", "s"),
    (r"(Index|Indices)$", "counted from 0"),
    (r"(^Num[A-Z]|Objects(Added)?$|Count$|^MaximumFreeAddresses$)", "a number of them"),
    (r"(Uid|UserId)$", "user id"),
    (r"(Gid|GroupId)$", "group id"),
    (r"^Snapshots$", "bytes"),
)
"""What the end of a number's name says it counts."""

FOLLOWING: Final = (
    migrate.MigrateVmResponseResponse,
    srpc.LocalUpgradeToUnixRequestTwo,
    srpc.LocalUpgradeToUnixResponseTwo,
)
"""Messages that travel in the middle of a call, which the table of methods does not have."""

OWN: Final = "Own"
"""What starts the name of a message that has fields which upstream's has not."""


def unit_of(field: Field) -> str:
    """The unit of a number, or of a list's or map's numbers; "" where there is none."""
    node = field.node
    while node.elem is not None:
        node = node.elem
    if node.go == "time.Duration":
        return "ns"
    if node.kind not in {"int", "uint"}:
        return ""
    return next((unit for pattern, unit in UNITS if re.search(pattern, field.wire_name)), "")


def is_number(node: Node) -> bool:
    """Whether it holds numbers."""
    while node.elem is not None:
        node = node.elem
    return node.kind in {"int", "uint"}


def doc_of(cls: type) -> str:
    """The docstring of a class on one line; "" where it has none of its own."""
    return plain(cls.__dict__.get("__doc__") or "")


def plain(text: str) -> str:
    """A docstring as Markdown, on one line."""
    return " ".join(text.split()).replace("``", "`")


def doc_of_field(cls: type[Message], attribute: str) -> str:
    """The docstring of a field, of the class that defines it; "" where there is none."""
    for base in cls.__mro__:
        if attribute in inspect.get_annotations(base):
            return _field_docs(base).get(attribute, "")
    return ""


@cache
def _field_docs(cls: type) -> dict[str, str]:
    body = _classes(cls.__module__)[cls.__name__].body
    found = {}
    for line, below in pairwise(body):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[line.target.id] = plain(below.value.value)
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


CALLED: Final = {
    "Hypervisor.ConnectToVmConsole": "connect_console",
    "Hypervisor.ConnectToVmManager": "connect_manager",
    "Hypervisor.ConnectToVmSerialPort": "connect_serial",
    "ImageServer.GetFilteredImageUpdates": "follow_images",
    "ImageServer.GetImageUpdates": "follow_images",
    "ImageServer.GetObjectStatisticsForImages": "get_object_statistics",
    "ImageServer.RestoreImageFromArchive": "restore_image",
}
"""Methods of clients whose name is not that of the method in Python's way of writing."""


def client_method(method: Method) -> str:
    """The name that a client of `smallstack.client` calls a method by."""
    if method.name in CALLED:
        return CALLED[method.name]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.short_name).lower()


def summary(method: Method) -> str:
    """What a method does: the first sentences of the client's docstring, up to an empty line.

    Where no client has it, its request's.
    """
    client = CLIENTS.get(method.service)
    found = getattr(client, client_method(method), method.request)
    return plain((inspect.getdoc(found) or "").partition("\n\n")[0])


def rights(method: Method) -> str:
    """Who may call it."""
    who = "an authenticated user" if method.public else f"the method power `{method.power}`"
    if method.unauthenticated_read:
        who += "; nothing where reads are open"
    return who


def own_request(method: Method) -> type[Message] | None:
    """The request as this project has it, where it has more fields than upstream's."""
    usual = method.request
    if usual is None:
        return None
    named = [below for below in usual.__subclasses__() if below.__name__ == OWN + usual.__name__]
    return named[0] if named else usual


def services() -> dict[str, list[Method]]:
    """All methods by service, sorted by name; that of SRPC itself comes last."""
    found: dict[str, list[Method]] = {name: [] for name in (*CLIENTS, "")}
    for method in METHODS.values():
        found[method.service].append(method)
    return {name: sorted(methods, key=lambda m: m.name) for name, methods in found.items()}


def all_nodes() -> dict[str, Node]:
    """Every struct, enumeration and tree that any method needs, by its upstream name."""
    found: dict[str, Node] = {}
    for method in METHODS.values():
        for message in (method.request, own_request(method), method.response):
            if message is not None:
                _collect(node_of(message), found)
    for extra in FOLLOWING:
        _collect(node_of(extra), found)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _collect(node: Node, found: dict[str, Node]) -> None:
    if node.kind in {"struct", "enum", "tree"}:
        if node.go in found:
            return
        found[node.go] = node
    for below in parts(node):
        _collect(below, found)


def parts(node: Node) -> Iterator[Node]:
    """The nodes that a node is made of."""
    yield from (field.node for field in node.fields)
    yield from (below for below in (node.key, node.elem) if below is not None)
    yield from node.members.values()
