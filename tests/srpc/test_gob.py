"""The fast gob codec against the slow one, and the promises of its interface."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.proto.enums import State
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.hypervisor.every import (
    CreateVmResponse,
    GetVmInfoRequest,
    GetVmInfoResponse,
    ListVMsResponse,
    StartVmRequest,
    Update,
)
from smallstack.proto.image import Image
from smallstack.proto.imageserver import GetImageInodesResponse, GetImageResponse
from smallstack.proto.kinds import Hash, Message, Time, Uint64
from smallstack.proto.methods import METHODS
from smallstack.proto.vm import VmInfo
from smallstack.srpc.errors import LocalProtocolError
from smallstack.srpc.gob import IMAGE, NEED_MORE, Decoder, Encoder, message_length
from tests.proto import reference_gob
from tests.proto.strategies import messages, trees

MESSAGES = sorted(
    {
        message
        for method in METHODS.values()
        for message in (method.request, method.response)
        if message is not None
    },
    key=lambda cls: (cls.go_package, cls.__name__),
)


def decode(data: bytes, type_: Any) -> Any:
    decoder = Decoder()
    decoder.feed(data)
    value = decoder.decode(type_)
    assert decoder.take_rest() == b""
    return value


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: f"{cls.go_package}.{cls.__name__}")
def test_every_message_matches_the_reference(cls: type[Message]) -> None:
    # Few examples of each of some 200 messages: together they are many.
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages(cls))
    def check(value: Message) -> None:
        data = Encoder().encode(value)
        assert data == reference_gob.encode(value)
        assert decode(data, cls) == value
        assert reference_gob.ReferenceDecoder(data).decode(cls) == value

    check()


@settings(max_examples=150, deadline=None)
@given(trees())
def test_trees_match_the_reference(tree: FileSystem) -> None:
    value = GetImageResponse(image=Image(file_system=tree))
    data = Encoder().encode(value)
    assert data == reference_gob.encode(value)
    assert decode(data, GetImageResponse) == value
    assert reference_gob.ReferenceDecoder(data).decode(GetImageResponse) == value


@settings(max_examples=60, deadline=None)
@given(messages(GetImageInodesResponse), st.data())
def test_any_split_of_the_stream_gives_the_same(value: Message, data: st.DataObject) -> None:
    stream = Encoder().encode(value) + b"raw bytes"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=10)))
    decoder = Decoder()
    found: Any = NEED_MORE
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[begin:end])
        if found is NEED_MORE:
            found = decoder.decode(type(value))
    assert found == value
    assert decoder.take_rest() == b"raw bytes"


@settings(max_examples=40, deadline=None)
@given(st.lists(messages(VmInfo) | messages(Update) | messages(GetImageInodesResponse), max_size=4))
def test_several_values_over_one_stream(values: list[Message]) -> None:
    encoder, reference = Encoder(), reference_gob.ReferenceEncoder()
    stream = b""
    for value in values:
        data = encoder.encode(value)
        assert data == reference.encode(value)
        stream += data
    decoder = Decoder()
    decoder.feed(stream)
    for value in values:
        assert decoder.decode(type(value)) == value
    assert decoder.decode(VmInfo) is NEED_MORE


def test_the_documented_request() -> None:
    data = Encoder().encode(GetVmInfoRequest(ip_address="10.77.0.99"))
    assert data.hex() == (
        "2b7f03010110476574566d496e666f5265717565737401ff800001010109497041646472657373010a000000"
        "09ff8001040a4d006300"
    )


def test_definitions_are_sent_once() -> None:
    encoder = Encoder()
    first = encoder.encode(CreateVmResponse(progress_message="getting image"))
    second = encoder.encode(CreateVmResponse(final=True))
    assert len(second) < 10 < len(first)
    decoder = Decoder()
    decoder.feed(first + second)
    assert decoder.decode(CreateVmResponse) == CreateVmResponse(progress_message="getting image")
    assert decoder.decode(CreateVmResponse) == CreateVmResponse(final=True)


def test_a_failed_encode_leaves_the_stream_usable() -> None:
    encoder = Encoder()
    with pytest.raises(LocalProtocolError):
        encoder.encode(StartVmRequest(ip_address="not an address"))
    data = encoder.encode(StartVmRequest(ip_address="198.51.100.7"))
    assert decode(data, StartVmRequest).ip_address == "198.51.100.7"


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Hash(bytes(range(64))), Hash),
        ("some text", str),
        (b"bytes", bytes),
        (True, bool),
        ([1, 2**64 - 1], list[Uint64]),
        ({"a": b"b"}, dict[str, bytes]),
        (Time(1, 2, None), Time),
    ],
)
def test_values_that_are_no_structures(value: Any, type_: Any) -> None:
    data = Encoder().encode(value, type_)
    assert data == reference_gob.encode(value, type_)
    assert decode(data, type_) == value
    assert reference_gob.ReferenceDecoder(data).decode(type_) == value


def test_addresses() -> None:
    def sent(text: str) -> bytes:
        return Encoder().encode(GetVmInfoRequest(ip_address=text))[-6:]

    long = Encoder().encode(GetVmInfoRequest(ip_address="::ffff:1.2.3.4"))
    assert bytes.fromhex("00000000000000000000ffff01020304") in long
    assert sent("1.2.3.4") == b"\x04\x01\x02\x03\x04\x00"
    assert decode(long, GetVmInfoRequest).ip_address == "1.2.3.4"
    keeping = Decoder(keep_mapped=True)
    keeping.feed(long)
    assert keeping.decode(GetVmInfoRequest) == GetVmInfoRequest(ip_address="::ffff:1.2.3.4")
    six = Encoder().encode(GetVmInfoRequest(ip_address="2001:db8::1"))
    assert decode(six, GetVmInfoRequest).ip_address == "2001:db8::1"


def test_a_pointer_to_zero_is_told_from_no_pointer() -> None:
    assert decode(Encoder().encode(Update(num_cpus=0)), Update).num_cpus == 0
    assert decode(Encoder().encode(Update()), Update).num_cpus is None


def test_unknown_words_pass_through() -> None:
    value = GetVmInfoResponse(vm_info=VmInfo(state=State(77)))
    found = decode(Encoder().encode(value), GetVmInfoResponse)
    assert found.vm_info.state == 77
    assert found.vm_info.state.text == "UNKNOWN State"


def test_zero_structures_are_sent() -> None:
    assert Encoder().encode(GetVmInfoResponse()).endswith(b"\x01\x01\x00\x00\x00")


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (GetVmInfoRequest(ip_address="1.2.3"), None),
        (GetVmInfoRequest(ip_address="1.2.3.4\0"), None),
        (GetVmInfoRequest(ip_address=7), None),  # type: ignore[arg-type]
        (VmInfo(memory_in_mib=-1), None),
        (VmInfo(memory_in_mib=2**64), None),
        (VmInfo(cpu_priority=2**63), None),
        (VmInfo(hostname=b"bytes"), None),  # type: ignore[arg-type]
        (VmInfo(tags={"a": 1}), None),  # type: ignore[dict-item]
        (VmInfo(tags=["a"]), None),  # type: ignore[arg-type]
        (VmInfo(owner_users="root"), None),  # type: ignore[arg-type]
        (VmInfo(volumes=[VmInfo()]), None),  # type: ignore[list-item]
        (VmInfo(created_on=Time(2**70)), None),
        (VmInfo(created_on=5), None),  # type: ignore[arg-type]
        (VmInfo(hostname="\ud800 alone"), None),
        (GetImageInodesResponse(inodes={1: VmInfo()}), None),  # type: ignore[dict-item]
        (b"short", Hash),
        ([2**64], list[Uint64]),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(value: Any, type_: Any) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        Encoder().encode(value, type_)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_message_is_refused() -> None:
    with pytest.raises(TypeError):
        Encoder().encode(object())
    with pytest.raises(TypeError):
        Decoder().decode(complex)


def test_message_length() -> None:
    data = Encoder().encode(GetVmInfoRequest(ip_address="10.77.0.99"))
    assert message_length(data) == (1, 0x2B)
    assert message_length(b"") is NEED_MORE
    assert message_length(b"\xfe\x01") is NEED_MORE
    assert message_length(b"\xfe\x01\x02") == (3, 258)


def test_maps_are_sorted() -> None:
    one = VmInfo(tags={"b": "2", "a": "1"})
    other = VmInfo(tags={"a": "1", "b": "2"})
    assert Encoder().encode(one) == Encoder().encode(other)


def test_fields_may_come_in_another_order_and_number() -> None:
    # A peer whose ListVMsResponse has a field before ours and one of a type we do not know.
    integer, string, message = (
        reference_gob.integer,
        reference_gob.text,
        reference_gob.message,
    )
    structure = reference_gob.structure
    listed = structure(structure(string("[]net.IP"), integer(66)), integer(5))
    fields = [
        structure(string("Extra"), integer(67)),
        structure(string("IpAddresses"), integer(66)),
        structure(string("Later"), integer(1)),
    ]
    body = structure(
        structure(string("ListVMsResponse"), integer(65)),
        reference_gob.uint(3) + b"".join(fields),
    )
    extra = structure(structure(string("Extra"), integer(67)), integer(6), integer(65))
    stream = message(integer(-65) + structure(None, None, body))
    stream += message(integer(-66) + structure(None, listed))
    stream += message(integer(-67) + structure(None, None, None, extra))
    inner = structure(None, b"\1" + b"\4\1\2\3\4")
    value = structure(
        b"\1" + b"\3abc" + inner,
        b"\2" + b"\4\1\2\3\4" + b"\4\5\6\7\x08",
        b"\1",
    )
    stream += message(integer(65) + value)
    assert decode(stream, ListVMsResponse).ip_addresses == ["1.2.3.4", "5.6.7.8"]


def test_a_large_image_is_packed_without_an_object_per_inode() -> None:
    from smallstack.proto.filesystem import FileSystemBuilder

    builder = FileSystemBuilder()
    for index in range(3000):
        inode = builder.add(mode=0o100644, size=1, hash=index.to_bytes(64, "big"), mtime_ns=5)
        builder.link(0, b"file%d" % index, inode)
    value = GetImageResponse(image=Image(file_system=builder.build()))
    decoder = Decoder(IMAGE)
    decoder.feed(Encoder().encode(value))
    found = decoder.decode(GetImageResponse)
    assert found == value
    assert found.image is not None
    assert found.image.file_system is not None
    assert len(found.image.file_system.objects()) == 3000
