"""Values of any message, made by hypothesis from what the schema says of its type."""

import socket
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.kinds import YEAR_ONE, Hash, Time
from smallstack.srpc.schema import Node, node_of

names = (
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
    )
    .map(lambda text: text.encode())
    .filter(lambda raw: raw not in {b".", b".."} and len(raw) < 256)
)

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.binary(
    max_size=12
).map(lambda raw: raw.decode("utf-8", "surrogateescape"))

times = st.one_of(
    st.just(Time()),
    st.builds(
        Time,
        st.integers(YEAR_ONE, 253402300799),
        st.integers(0, 999999999),
        st.none() | st.integers(-720, 840).filter(lambda zone: zone != -1),
    ),
)

addresses = st.one_of(
    st.just(""),
    st.ip_addresses(v=4).map(str),
    st.binary(min_size=16, max_size=16).map(
        lambda raw: socket.inet_ntop(socket.AF_INET6, b"\x20" + raw[1:])
    ),
)

xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=8).filter(lambda raw: b"\0" not in raw),
    st.binary(max_size=10),
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn) -> FileSystem:
    """Small trees with every kind of inode, hard links, attributes, and gaps in the numbers."""
    mtimes = st.integers(1, 2**62)
    some_mtimes = st.none() | mtimes
    builder = FileSystemBuilder(
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        mtime_ns=draw(some_mtimes),
        xattrs=draw(xattrs),
    )
    directories: list[tuple[int, set[bytes]]] = [(0, set())]
    number = 0
    for _ in range(draw(st.integers(0, 8))):
        number += draw(st.integers(1, 300))
        kind = draw(st.sampled_from("dflscb"))
        common: dict[str, Any] = {
            "uid": draw(st.integers(0, 2**32 - 1)),
            "gid": draw(st.integers(0, 5)),
            "xattrs": draw(xattrs),
            "number": number,
        }
        mode = draw(st.integers(0, 0o7777))
        if kind == "d":
            index = builder.add(mode=0o40000 | mode, mtime_ns=draw(some_mtimes), **common)
        elif kind == "f":
            size = draw(st.integers(0, 2**63))
            digest = draw(st.binary(min_size=64, max_size=64))
            index = builder.add(
                mode=0o100000 | mode, size=size, hash=digest, mtime_ns=draw(mtimes), **common
            )
        elif kind == "l":
            target = draw(names)
            index = builder.add(mode=0o120777, target=target, mtime_ns=draw(some_mtimes), **common)
        elif kind == "s":
            index = builder.add(
                mode=0o100000 | mode, computed=True, target=draw(st.binary(max_size=5)), **common
            )
        else:
            type_bits = 0o020000 if kind == "c" else 0o060000
            rdev = draw(st.integers(0, 2**40))
            index = builder.add(mode=type_bits | mode, rdev=rdev, mtime_ns=draw(mtimes), **common)
        for _ in range(1 if kind == "d" else draw(st.integers(1, 2))):
            parent, taken = draw(st.sampled_from(directories))
            name = draw(names)
            if name in taken:
                name = b"%d" % len(taken) + name[:200]
            assume(name not in taken)
            taken.add(name)
            builder.link(parent, name, index)
        if kind == "d":
            directories.append((index, set()))
    return builder.build()


def values(node: Node) -> st.SearchStrategy[Any]:
    """Values of one type."""
    match node.kind:
        case "bool":
            return st.booleans()
        case "int":
            return st.integers(-1 << (node.bits - 1), (1 << (node.bits - 1)) - 1)
        case "uint":
            return st.integers(0, (1 << node.bits) - 1)
        case "string":
            return any_text
        case "bytes":
            return st.binary(max_size=20)
        case "ip":
            return addresses
        case "enum":
            return st.sampled_from(list(node.cls))
        case "time":
            return times
        case "hash":
            return st.binary(min_size=64, max_size=64).map(Hash)
        case "list":
            assert node.elem is not None
            return st.lists(values(node.elem), max_size=3)
        case "map":
            assert node.key is not None
            assert node.elem is not None
            return st.dictionaries(values(node.key), values(node.elem), max_size=3)
        case "struct":
            return messages(node.cls)
        case "interface":
            return st.none() | st.one_of([values(member) for member in node.members.values()])
        case _:
            return trees()


def messages(cls: Any) -> st.SearchStrategy[Any]:
    """Messages of a class, some fields left at their defaults."""
    node = node_of(cls)
    fields = {
        field.attribute: (st.none() | values(field.node)) if field.nullable else values(field.node)
        for field in node.fields
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda found: cls(**found))


__all__ = ["addresses", "any_text", "messages", "names", "times", "trees", "values"]
