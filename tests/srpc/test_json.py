"""The JSON coder: round trips, what upstream's reader takes and its writer gives, bad input."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.proto.enums import State
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.hypervisor.every import (
    CopyVmRequest,
    CreateVmRequest,
    CreateVmResponse,
    ExportLocalVmResponse,
    GetUpdatesRequest,
    GetVmInfoRequest,
    ListVMsResponse,
    Update,
)
from smallstack.proto.image import Image
from smallstack.proto.imageserver import GetImageInodesResponse, GetImageResponse
from smallstack.proto.kinds import Hash, Message, Time
from smallstack.proto.methods import METHODS
from smallstack.proto.objectserver import CheckObjectsRequest
from smallstack.proto.vm import Address, VmInfo, Volume
from smallstack.srpc.coder import NEED_MORE, Limits
from smallstack.srpc.errors import JsonError, LocalProtocolError
from smallstack.srpc.json_coder import Decoder, Encoder, from_json, to_json
from tests.proto.strategies import messages, trees
from tests.srpc.test_gob import MESSAGES


def cleaned(value: Any) -> Any:
    """The value as text that is UTF-8 can hold it, and times with what their text can."""
    return from_json(to_json(value), type(value))


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: f"{cls.go_package}.{cls.__name__}")
def test_every_message_survives(cls: type[Message]) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages(cls))
    def check(value: Message) -> None:
        try:
            text = to_json(value)
        except LocalProtocolError:
            return  # a year that RFC 3339 has no text for
        once = from_json(text, cls)
        assert to_json(once) == text
        assert from_json(to_json(once), cls) == once
        # Nothing but bytes that are no UTF-8 and zones of zero minutes is lost on the way.
        if b"\\ufffd" not in text and "\ufffd" not in text.decode() and b"Z" not in text:
            assert once == value

    check()


@settings(max_examples=60, deadline=None)
@given(trees())
def test_trees_survive(tree: FileSystem) -> None:
    value = GetImageResponse(image=Image(file_system=tree))
    text = to_json(value)
    if "\ufffd" not in text.decode():
        assert from_json(text, GetImageResponse) == value


def test_embedded_structures_lie_flat() -> None:
    value = CreateVmRequest(vm_info=VmInfo(hostname="j1", memory_in_mib=128), roundup_power=24)
    assert msgspec.json.decode(to_json(value)) == {
        "RoundupPower": 24,
        "Address": {"MacAddress": ""},
        "ChangedStateOn": "0001-01-01T00:00:00Z",
        "CreatedOn": "0001-01-01T00:00:00Z",
        "Hostname": "j1",
        "IdentityExpires": "0001-01-01T00:00:00Z",
        "MemoryInMiB": 128,
        "MilliCPUs": 0,
        "State": "starting",
    }
    assert from_json(to_json(value), CreateVmRequest) == value


def test_embedded_in_embedded() -> None:
    text = b'{"VmInfo":{"Bridges":["b"],"Hostname":"x","VolumeLocations":[{"Filename":"f"}]}}'
    value = from_json(text, ExportLocalVmResponse)
    assert value.vm_info.local_vm_info.vm_info.hostname == "x"
    assert value.vm_info.local_vm_info.volume_locations[0].filename == "f"
    assert from_json(to_json(value), ExportLocalVmResponse) == value


def test_outer_fields_hide_embedded_ones() -> None:
    value = CopyVmRequest(ip_address="198.51.100.1", vm_info=VmInfo(address=Address()))
    assert from_json(to_json(value), CopyVmRequest) == value


def test_words_addresses_and_digests() -> None:
    text = (
        b'{"address":{"ipaddress":"198.51.100.7","MACADDRESS":"52:54:00:00:00:01"},'
        b'"STATE":"failed to start","Volumes":[{"Format":"qcow2"}],"Nope":{"a":[1,{}]}}'
    )
    value = from_json(text, VmInfo)
    assert value.address == Address(ip_address="198.51.100.7", mac_address="52:54:00:00:00:01")
    assert value.state is State.FAILED_TO_START
    assert value.volumes[0].format.text == "qcow2"
    hashes = CheckObjectsRequest(hashes=[Hash(bytes(range(64)))])
    assert b'{"Hashes":["000102' in to_json(hashes)
    assert from_json(to_json(hashes), CheckObjectsRequest) == hashes


def test_mapped_addresses_are_shrunk() -> None:
    value = from_json(b'{"IpAddress":"::ffff:198.51.100.7"}', GetVmInfoRequest)
    assert value.ip_address == "198.51.100.7"
    assert from_json(b'{"IpAddress":"2001:DB8::0:7"}', GetVmInfoRequest).ip_address == "2001:db8::7"


def test_null_leaves_a_field_as_it_is() -> None:
    text = (
        b'{"Address":null,"Hostname":null,"Volumes":[null],"OwnerUsers":null,"Tags":{"a":null},'
        b'"State":null,"CreatedOn":null,"MemoryInMiB":null}'
    )
    assert from_json(text, VmInfo) == VmInfo(volumes=[Volume()], tags={"a": ""})
    assert from_json(b"null", VmInfo) == VmInfo()


def test_pointers() -> None:
    assert from_json(b'{"NumCPUs":0}', Update).num_cpus == 0
    assert from_json(b"{}", Update).num_cpus is None
    assert to_json(Update(num_cpus=0)) == b'{"NumCPUs":0}'
    assert to_json(GetUpdatesRequest()) == b'{"RegisterExternalLeasesRequest":null}'


def test_maps_are_sorted_and_number_keys_are_text() -> None:
    value = GetImageInodesResponse(inodes={10: None, 9: None}, num_links={2: 1})
    assert b'"Inodes":{"10":null,"9":null},"NumLinks":{"2":1}' in to_json(value)
    assert from_json(to_json(value), GetImageInodesResponse) == value


def test_indented_as_files_are() -> None:
    text = to_json(Address(ip_address="1.2.3.4", mac_address="m"), indent=4)
    assert text == b'{\n    "IpAddress": "1.2.3.4",\n    "MacAddress": "m"\n}'


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-03T04:05:06Z",
        "2026-02-03T04:05:06.123456789Z",
        "2026-02-03T04:05:06.12+05:45",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999-23:59",
    ],
)
def test_times(text: str) -> None:
    value = from_json(f'{{"CreatedOn":"{text}"}}', VmInfo)
    assert f'"CreatedOn":"{text}"'.encode() in to_json(value)


BAD = [
    (b'{"Hostname":5}', VmInfo),
    (b'{"Hostname":["a"]}', VmInfo),
    (b'{"MemoryInMiB":-1}', VmInfo),
    (b'{"MemoryInMiB":1.0}', VmInfo),
    (b'{"MemoryInMiB":true}', VmInfo),
    (b'{"MemoryInMiB":"1"}', VmInfo),
    (b'{"MemoryInMiB":18446744073709551616}', VmInfo),
    (b'{"MemoryInMiB":1e400}', VmInfo),
    (b'{"State":1}', VmInfo),
    (b'{"State":"flying"}', VmInfo),
    (b'{"CreatedOn":"yesterday"}', VmInfo),
    (b'{"CreatedOn":"2026-02-30T00:00:00Z"}', VmInfo),
    (b'{"CreatedOn":"2026-02-03T04:05:06+25:00"}', VmInfo),
    (b'{"CreatedOn":"2026-02-03T04:05:06+05:99"}', VmInfo),
    (b'{"IpAddress":"1.2.3"}', GetVmInfoRequest),
    (b'{"IpAddress":"fe80::1%eth0"}', GetVmInfoRequest),
    (b'{"IpAddress":"1.2.3.4\\u0000"}', GetVmInfoRequest),
    (b'{"Tags":["a"]}', VmInfo),
    (b'{"Volumes":{}}', VmInfo),
    (b'{"Volumes":[[]]}', VmInfo),
    (b'{"IdentityKey":"*"}', CreateVmRequest),
    (b'{"IdentityKey":"YQ"}', CreateVmRequest),
    (b'{"Hashes":["00"]}', CheckObjectsRequest),
    (b'{"Hashes":["' + b"0g" * 64 + b'"]}', CheckObjectsRequest),
    (b'{"NumLinks":{"one":1}}', GetImageInodesResponse),
    (b'{"Inodes":{"1":{}}}', GetImageInodesResponse),
    (b'{"Inodes":{"1":7}}', GetImageInodesResponse),
    (b'{"Image":{"FileSystem":{"EntryList":[{"Name":"a","InodeNumber":5}]}}}', GetImageResponse),
    (b'{"Image":{"FileSystem":{"InodeTable":{"1":{"Symlink":""}}}}}', GetImageResponse),
    (b'{"Image":{"FileSystem":{"InodeTable":{"1":{"Rdev":1,"Mode":33188}}}}}', GetImageResponse),
    (b"[]", VmInfo),
    (b'"text"', VmInfo),
    (b'{"a":', VmInfo),
    (b"{]", VmInfo),
    (b'{"a":"\xff"}', VmInfo),
    (b"", VmInfo),
]


@pytest.mark.parametrize(("text", "type_"), BAD)
def test_what_is_wrong_is_refused_in_one_line(text: bytes, type_: Any) -> None:
    with pytest.raises(JsonError) as caught:
        from_json(text, type_)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value",
    [
        VmInfo(memory_in_mib=-1),
        VmInfo(memory_in_mib="1"),  # type: ignore[arg-type]
        VmInfo(hostname=b"x"),  # type: ignore[arg-type]
        VmInfo(state=State(99)),
        VmInfo(created_on=Time(10**15)),
        VmInfo(volumes=[1]),  # type: ignore[list-item]
        CheckObjectsRequest(hashes=[b"short"]),  # type: ignore[list-item]
        GetImageInodesResponse(inodes={1: VmInfo()}),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_sent_is_refused(value: Message) -> None:
    with pytest.raises(LocalProtocolError):
        to_json(value)


# ---- the stream --------------------------------------------------------------------------------


def test_a_value_needs_no_line_feed() -> None:
    decoder = Decoder()
    decoder.feed(b'{"IpAddress":"1.2.3.4"}')
    assert decoder.decode(GetVmInfoRequest) == GetVmInfoRequest(ip_address="1.2.3.4")
    assert decoder.newline_pending
    assert decoder.take_rest() == b""


def test_what_follows_the_line_feed_is_left() -> None:
    for feed in (b"\n", b"\r\n", b" \n"):
        decoder = Decoder()
        decoder.feed(b'  {"IpAddress":"1.2.3.4"}' + feed + b"Hypervisor.ListVMs\n")
        assert decoder.decode(GetVmInfoRequest) == GetVmInfoRequest(ip_address="1.2.3.4")
        assert not decoder.newline_pending
        assert decoder.take_rest() == b"Hypervisor.ListVMs\n"


@given(st.lists(messages(CreateVmResponse), min_size=1, max_size=4), st.integers(1, 20))
def test_values_in_pieces(values: list[CreateVmResponse], step: int) -> None:
    values = [cleaned(value) for value in values]
    stream = b"".join(Encoder().encode(value) for value in values)
    decoder = Decoder()
    found = []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        while (value := decoder.decode(CreateVmResponse)) is not NEED_MORE:
            found.append(value)
    assert found == values


def test_brackets_and_quotes_inside_strings() -> None:
    value = VmInfo(hostname='}{"\\][', tags={'"': "\\"})
    decoder = Decoder()
    decoder.feed(Encoder().encode(value))
    assert decoder.decode(VmInfo) == value


def test_limits() -> None:
    decoder = Decoder(Limits(message=10))
    decoder.feed(b'{"Hostname')
    assert decoder.decode(VmInfo) is NEED_MORE
    decoder.feed(b'":"x')
    with pytest.raises(JsonError):
        decoder.decode(VmInfo)
    deep = Decoder(Limits(depth=3))
    deep.feed(b'{"a":[[[')
    with pytest.raises(JsonError):
        deep.decode(VmInfo)
    with pytest.raises(JsonError):
        _decode(b"[" * 100_000)


def _decode(data: bytes) -> Any:
    decoder = Decoder()
    decoder.feed(data)
    return decoder.decode(VmInfo)


@pytest.mark.parametrize("junk", [b"x", b"\0", b"7", b"true", b",", b":"])
def test_what_cannot_start_a_value_is_refused(junk: bytes) -> None:
    with pytest.raises(JsonError):
        _decode(junk)


def test_empty_lists_are_lists() -> None:
    assert to_json(ListVMsResponse()) == b'{"IpAddresses":[]}'


def test_the_method_table_knows_every_message() -> None:
    assert {type_ for method in METHODS.values() for type_ in (method.request, method.response)} - {
        None
    } == set(MESSAGES)
