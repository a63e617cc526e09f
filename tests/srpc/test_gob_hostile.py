"""Streams meant to hurt: each ends in GobError or NEED_MORE, soon, and without much memory."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.proto.hypervisor.every import GetVmInfosResponse, ListVMsRequest, ListVMsResponse
from smallstack.proto.image import Image
from smallstack.proto.imageserver import GetImageInodesResponse, GetImageResponse
from smallstack.proto.kinds import Uint64
from smallstack.proto.objectserver import CheckObjectsRequest
from smallstack.proto.vm import VmInfo
from smallstack.srpc.errors import GobError
from smallstack.srpc.gob import NEED_MORE, Decoder, Encoder, Limits, message_length
from tests.proto.reference_gob import integer, message, structure, text, uint
from tests.proto.strategies import messages, trees

VECTORS = Path(__file__).parents[1] / "vectors"


def definition(number: int, *, name: str = "T", **kind: bytes) -> bytes:
    """The message that defines a type: elem=…, key=…, length=…, fields=… say of which kind."""
    common = structure(text(name), integer(number))
    kinds: list[bytes | None] = [None] * 7
    if "fields" in kind:
        kinds[2] = structure(common, kind["fields"])
    elif "key" in kind:
        kinds[3] = structure(common, kind["key"], kind["elem"])
    elif "length" in kind:
        kinds[0] = structure(common, kind["elem"], kind["length"])
    elif "elem" in kind:
        kinds[1] = structure(common, kind["elem"])
    else:
        kinds[4] = structure(common)
    return message(integer(-number) + structure(*kinds))


def fields(*pairs: tuple[str, int]) -> bytes:
    return uint(len(pairs)) + b"".join(structure(text(n), integer(t)) for n, t in pairs)


def one_field(name: str, number: int, value: bytes) -> bytes:
    """A structure with one field of a type, and a value of it."""
    return definition(65, fields=fields((name, number))) + message(integer(65) + structure(value))


def run(stream: bytes, type_: Any, limits: Limits | None = None) -> Any:
    decoder = Decoder(limits) if limits else Decoder()
    decoder.feed(stream)
    return decoder.decode(type_)


ADDRESSES = definition(66, elem=integer(5))

STREAMS: dict[str, tuple[bytes, Any]] = {
    "an empty message": (b"\0", VmInfo),
    "a length of 9 bytes": (b"\xf7" + b"\1" * 9, VmInfo),
    "a giant message": (b"\xf8" + b"\xff" * 8, VmInfo),
    "a message just above the limit": (uint((64 << 20) + 1), VmInfo),
    "an id that runs off": (message(b"\xfe\1"), VmInfo),
    "a value of no type": (message(integer(70) + b"\0"), VmInfo),
    "a value of type 0": (message(integer(0) + b"\0\0"), VmInfo),
    "a value of a reserved type": (message(integer(20) + b"\0\0"), VmInfo),
    "a definition of a reserved type": (definition(20, elem=integer(5)), VmInfo),
    "a definition of a giant id": (definition(2**40, elem=integer(5)), VmInfo),
    "a definition of nothing": (message(integer(-65) + b"\0"), VmInfo),
    "a definition of two kinds": (
        message(
            integer(-65)
            + structure(
                None, structure(structure(integer(1)), integer(5)), structure(structure(text("x")))
            )
        ),
        VmInfo,
    ),
    "a definition of an eighth kind": (message(integer(-65) + b"\x08\0\0"), VmInfo),
    "a definition with more behind it": (
        message(integer(-65) + structure(None, structure(None, integer(5))) + b"x"),
        VmInfo,
    ),
    "the same id twice": (
        ADDRESSES + definition(66, elem=integer(6)) + one_field("IpAddresses", 66, b"\0"),
        ListVMsResponse,
    ),
    "a nameless field": (definition(65, fields=fields(("", 6))), VmInfo),
    "a field with a giant name": (definition(65, fields=fields(("x" * 5000, 6))), VmInfo),
    "more fields than bytes": (
        message(integer(-65) + structure(None, None, structure(None, uint(2**40)))),
        VmInfo,
    ),
    "a negative array": (definition(65, elem=integer(3), length=integer(-5)), VmInfo),
    "a giant list": (ADDRESSES + one_field("IpAddresses", 66, uint(2**60)), ListVMsResponse),
    "a giant string": (one_field("Hostname", 6, uint(2**63)), VmInfo),
    "a string that runs off": (one_field("Hostname", 6, b"\5ab"), VmInfo),
    "a giant map": (
        definition(66, key=integer(6), elem=integer(6)) + one_field("Tags", 66, uint(2**62)),
        VmInfo,
    ),
    "a number of 9 bytes": (one_field("MemoryInMiB", 3, b"\xf7" + b"\1" * 9), VmInfo),
    "a bool of 2": (one_field("SpreadVolumes", 2 - 1, b"\2"), VmInfo),
    "a string for a number": (one_field("MemoryInMiB", 6, b"\1x"), VmInfo),
    "a signed number for an unsigned one": (one_field("MemoryInMiB", 2, b"\2"), VmInfo),
    "a structure for a list": (
        definition(66, fields=fields(("A", 3))) + one_field("IpAddresses", 66, b"\0"),
        ListVMsResponse,
    ),
    "a field beyond the last": (
        definition(65, fields=fields(("Hostname", 6))) + message(integer(65) + b"\2\1x\0"),
        VmInfo,
    ),
    "a field number that overflows": (
        definition(65, fields=fields(("Hostname", 6)))
        + message(integer(65) + b"\1\1x" + uint(2**64 - 1) + b"\0"),
        VmInfo,
    ),
    "a field of a type that is not defined": (
        definition(65, fields=fields(("Hostname", 6), ("Nope", 99)))
        + message(integer(65) + b"\1\1x\1\1y\0"),
        VmInfo,
    ),
    "bytes behind a value": (
        definition(65, fields=fields(("Hostname", 6))) + message(integer(65) + b"\1\1x\0more"),
        VmInfo,
    ),
    "no end of a structure": (
        definition(65, fields=fields(("Hostname", 6))) + message(integer(65) + b"\1\1x"),
        VmInfo,
    ),
    "an address of 5 bytes": (
        ADDRESSES + one_field("IpAddresses", 66, b"\1\5abcde"),
        ListVMsResponse,
    ),
    "a time of 3 bytes": (
        definition(66) + one_field("CreatedOn", 66, b"\3\1\2\3"),
        VmInfo,
    ),
    "a time of version 9": (
        definition(66) + one_field("CreatedOn", 66, b"\x0f" + b"\x09" * 15),
        VmInfo,
    ),
    "a time with too many nanoseconds": (
        definition(66) + one_field("CreatedOn", 66, b"\x0f\1" + b"\x7f" * 14),
        VmInfo,
    ),
    "a digest of another length": (
        definition(67, elem=integer(3), length=integer(32))
        + definition(66, elem=integer(67))
        + one_field("Hashes", 66, b"\1" + b"\x20" + b"\0" * 32),
        CheckObjectsRequest,
    ),
    "a digest of large numbers": (
        definition(67, elem=integer(3), length=integer(64))
        + definition(66, elem=integer(67))
        + one_field("Hashes", 66, b"\1" + b"\x40" + b"\xfe\1\0" * 64),
        CheckObjectsRequest,
    ),
    "a type that holds itself, deep": (
        definition(66, elem=integer(66)) + one_field("Unknown", 66, b"\1" * 5000),
        VmInfo,
    ),
    "a structure that holds itself, deep": (
        definition(66, fields=fields(("A", 66))) + one_field("Unknown", 66, b"\1" * 5000),
        VmInfo,
    ),
    "interfaces in interfaces, deep": (
        definition(66, elem=integer(8))
        + one_field("Unknown", 66, (b"\1" + b"\1x" + integer(66) + b"\1\0") * 500),
        VmInfo,
    ),
    "an interface of no type": (
        one_field("Unknown", 8, b"\1x" + integer(99) + b"\1\0"),
        VmInfo,
    ),
    "an interface with a giant name": (one_field("Unknown", 8, uint(2**50) + b"x"), VmInfo),
    "an interface nobody registered": (
        definition(66, key=integer(3), elem=integer(8))
        + definition(67, fields=fields(("Mode", 3)))
        + one_field("Inodes", 66, b"\1\1" + text("*os.File") + integer(67) + b"\1\0"),
        GetImageInodesResponse,
    ),
    "an interface of the wrong type": (
        definition(66, key=integer(3), elem=integer(8))
        + definition(67, elem=integer(3))
        + one_field(
            "Inodes", 66, b"\1\1" + text("*filesystem.SymlinkInode") + integer(67) + b"\1\0\0"
        ),
        GetImageInodesResponse,
    ),
    "an interface that defines a reserved type": (
        one_field("Unknown", 8, b"\1x" + integer(-5) + b"\1\0"),
        VmInfo,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_nonsense_is_refused_in_one_line(name: str) -> None:
    stream, type_ = STREAMS[name]
    decoder = Decoder()
    decoder.feed(stream)
    with pytest.raises(GobError) as caught:
        decoder.decode(type_)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    # And the decoder is of no more use.
    with pytest.raises(GobError):
        decoder.decode(type_)


def test_message_length_refuses_nonsense() -> None:
    for data in (b"\0", b"\x80" + b"\0" * 20):
        with pytest.raises(GobError):
            message_length(data)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.bin")), ids=lambda path: path.stem)
def test_a_stream_cut_anywhere_is_not_over(path: Path) -> None:
    # The end of the stream is missing: whatever is decoded before, the last value never is.
    stream = path.read_bytes()
    whole = Decoder()
    whole.feed(stream)
    kinds = {
        "get-vm-infos": ListVMsRequest,
        "image": GetImageResponse,
        "update": GetVmInfosResponse,
    }
    type_ = kinds.get(path.stem, GetImageInodesResponse)
    values = 0
    try:
        while whole.decode(type_) is not NEED_MORE:
            values += 1
    except GobError:
        return  # a value of another type: truncation is tried with the others
    for cut in range(len(stream)):
        decoder = Decoder()
        decoder.feed(stream[:cut])
        found = 0
        while decoder.decode(type_) is not NEED_MORE:
            found += 1
        assert found < values


@settings(max_examples=60, deadline=None)
@given(messages(GetImageInodesResponse) | messages(VmInfo), st.data())
def test_any_changed_bytes_end_in_a_value_need_more_or_gob_error(
    value: Any, data: st.DataObject
) -> None:
    stream = bytearray(Encoder().encode(value))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(stream) - 1))
        stream[place] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    decoder.feed(bytes(stream))
    try:
        while decoder.decode(type(value)) is not NEED_MORE:
            pass
    except GobError:
        pass


@settings(max_examples=80, deadline=None)
@given(trees(), st.data())
def test_any_changed_tree_is_a_tree_or_an_error(tree: Any, data: st.DataObject) -> None:
    stream = bytearray(Encoder().encode(GetImageResponse(image=Image(file_system=tree))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(1150, len(stream) - 1))
        stream[place] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    decoder.feed(bytes(stream))
    try:
        found = decoder.decode(GetImageResponse)
    except GobError:
        return
    if found is not NEED_MORE and found.image is not None and found.image.file_system is not None:
        seen = found.image.file_system
        assert sum(1 for _ in seen.walk()) >= len(seen)
        assert Encoder().encode(found)


# ---- limits ------------------------------------------------------------------------------------


def list_of(number: int, elem: int, count: int, element: bytes) -> bytes:
    return definition(66, elem=integer(elem)) + one_field(
        "VmInfos", number, uint(count) + element * count
    )


def growth(action: Callable[[], object]) -> tuple[int, float]:
    """Python memory at its peak (bytes) and CPU seconds that an action takes."""
    tracemalloc.start()
    started = time.thread_time()
    try:
        action()
    finally:
        seconds = time.thread_time() - started
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, seconds


def test_many_empty_structures_are_too_many() -> None:
    # A byte each on the wire, more than a kilobyte each in memory.
    stream = (
        definition(67, fields=fields(("Hostname", 6)))
        + definition(66, elem=integer(67))
        + one_field("VmInfos", 66, uint(1_000_000) + b"\0" * 1_000_000)
    )

    def decode() -> None:
        with pytest.raises(GobError):
            run(stream, GetVmInfosResponse, Limits(values=100_000))

    peak, _ = growth(decode)
    assert peak < 100 << 20


def test_elements_are_bounded() -> None:
    stream = Encoder().encode([0] * 1001, list[Uint64])
    assert len(run(stream, list[Uint64])) == 1001
    with pytest.raises(GobError):
        run(stream, list[Uint64], Limits(elements=1000))


def test_types_are_bounded() -> None:
    stream = b"".join(definition(65 + i, elem=integer(5)) for i in range(600))
    with pytest.raises(GobError):
        run(stream, VmInfo)
    assert run(stream, VmInfo, Limits(types=600)) is NEED_MORE


def test_fields_of_types_are_bounded() -> None:
    one = fields(*((f"F{i}", 3) for i in range(100)))
    stream = b"".join(definition(65 + i, fields=one) for i in range(90))
    with pytest.raises(GobError):
        run(stream, VmInfo)
    assert run(stream, VmInfo, Limits(type_fields=9000)) is NEED_MORE


def test_inodes_are_bounded() -> None:
    stream = (VECTORS / "image.bin").read_bytes()
    assert run(stream, GetImageResponse, Limits(inodes=7)).image is not None
    with pytest.raises(GobError):
        run(stream, GetImageResponse, Limits(inodes=6))


def test_messages_are_bounded_before_they_are_there() -> None:
    with pytest.raises(GobError):
        run(uint(1001), VmInfo, Limits(message=1000))


def test_a_value_in_many_messages_is_bounded() -> None:
    stream = Encoder().encode(GetImageInodesResponse(error="x" * 2000, inodes={}, inode_numbers={}))
    assert run(stream, GetImageInodesResponse).error == "x" * 2000
    stream = (VECTORS / "inode-regular.bin").read_bytes()
    with pytest.raises(GobError):
        run(stream, GetImageInodesResponse, Limits(value=50))


def test_depth_is_bounded() -> None:
    nested = definition(66, elem=integer(66)) + one_field("Unknown", 66, b"\1" * 20 + b"\0")
    assert run(nested, VmInfo) == VmInfo()


def test_different_types_of_one_peer_do_not_pile_up() -> None:
    # What is kept of definitions for later streams has a bound of its own.
    many = fields(*((f"F{i}", 6) for i in range(300)))

    def decode() -> None:
        for i in range(3000):
            stream = definition(65, name=f"T{i}", fields=many) + message(integer(65) + b"\0")
            assert run(stream, VmInfo) == VmInfo()

    peak, _ = growth(decode)
    assert peak < 60 << 20


def test_a_value_with_many_interruptions_takes_linear_time() -> None:
    def stream(count: int) -> bytes:
        out = definition(66, elem=integer(8)) + definition(65, fields=fields(("Unknown", 66)))
        current = integer(65) + b"\1" + uint(count)
        for i in range(count):
            body = definition(100 + i, elem=integer(6))
            current += text("x") + body[1 if body[0] < 128 else 2 :]
            out += message(current)
            current = integer(100 + i) + b"\2\0\0"
        return out + message(current + b"\0")

    assert run(stream(5), VmInfo) == VmInfo()
    _, few = growth(lambda: run(stream(100), VmInfo))
    _, many = growth(lambda: run(stream(400), VmInfo))
    assert many < 40 * max(few, 0.001)
