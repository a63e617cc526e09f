"""Messages of the kernel and to it, without a kernel."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.network import nfnetlink
from smallstack.network.guard import Guest, State, build
from smallstack.network.monitor import LinkChange, link_changes
from smallstack.network.names import MAXIMUM, service_name
from smallstack.network.nfnetlink import attribute, attributes, nested


def link_message(name: str, master: int | None, kind: int = 16, family: int = 0) -> bytes:
    body = struct.pack("=BxHiII", family, 1, 7, 0, 0) + attribute(3, name.encode() + b"\0")
    if master is not None:
        body += attribute(10, struct.pack("=I", master))
    size = 16 + len(body)
    return struct.pack("=IHHII", size, kind, 0, 0, 0) + body + bytes(-size % 4)


def test_link_changes() -> None:
    data = (
        link_message("eth0", 5)
        + link_message("eth1", None)
        + link_message("eth2", 5, kind=17)
        + link_message("eth3", 5, family=7)
        + link_message("eth4", 5, kind=20)
    )
    assert link_changes(data) == [
        LinkChange("eth0", 5),
        LinkChange("eth1", 0),
        LinkChange("eth2", 0, gone=True),
    ]


@given(st.binary(max_size=200), st.integers(0, 100))
def test_link_changes_of_nonsense(data: bytes, cut: int) -> None:
    link_changes(data)
    link_changes(link_message("eth0", 5)[:cut] + data)


@given(st.dictionaries(st.integers(0, 200), st.binary(max_size=40), max_size=6))
def test_attributes(values: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in values.items())
    assert attributes(data) == {kind: [value] for kind, value in values.items()}
    assert attributes(nested(9, data)) == {9: [data]}


def test_a_batch_byte_by_byte() -> None:
    """struct nlmsghdr, struct nfgenmsg, attributes; include/uapi/linux/netfilter/nf_tables.h."""
    batch = nfnetlink.Batch("t")
    batch.add_elements("s", [(b"\1\2\3\4", None)])
    assert batch.encode().hex(" ", 4) == (
        # BATCH_BEGIN for subsystem 10
        "14000000 10000100 00000000 00000000 0000000a "
        # NEWSETELEM, REQUEST | ACK | CREATE, bridge family; table "t", set "s"
        "38000000 0c0a0504 01000000 00000000 07000000 06000100 74000000 06000200 73000000 "
        # elements { element { key { value 01020304 } } }
        "14000380 10000180 0c000180 08000100 01020304 "
        "14000000 11000100 02000000 00000000 0000000a"
    )


def test_an_empty_table_is_one_transaction() -> None:
    """Added, deleted and added again: it replaces a table whether or not there was one."""
    data = build(State()).encode()
    kinds = []
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        kinds.append(kind)
        at += (size + 3) & ~3
    assert at == len(data)
    assert kinds[:4] == [0x10, 0xA00, 0xA02, 0xA00]
    assert kinds[-1] == 0x11


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2000])
def test_long_lists_are_split(count: int) -> None:
    guests = {
        f"ss-{n:08x}": Guest(f"ss-{n:08x}", "52:54:00:00:00:01", "10.0.0.1") for n in range(count)
    }
    data = build(State(guests)).encode()
    at = 0
    while at < len(data):
        size = struct.unpack_from("=I", data, at)[0]
        for payload in attributes(data[at + 20 : at + size]).get(3, []):
            assert len(payload) < 65536 - 4
        at += (size + 3) & ~3
    assert at == len(data)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15))
def test_service_names_fit(bridge: str) -> None:
    name = service_name(bridge)
    assert len(name) <= MAXIMUM
    assert name.endswith("-ll")
    assert name != bridge
