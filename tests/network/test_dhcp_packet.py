"""The DHCP codec: exact bytes, every truncation, and nothing but PacketError for nonsense."""

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.network.dhcp.frame import datagram, internet_checksum
from smallstack.network.dhcp.packet import (
    COOKIE,
    HEADER,
    INPUT_LIMIT,
    MAXIMUM_SIZE,
    MessageType,
    Option,
    Packet,
    PacketError,
    classless_routes,
    decode,
    encode,
    fit,
)
from tests.network.frames import checksum, dhcp_reply, ethernet

addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
packets = st.builds(
    Packet,
    op=st.integers(0, 255),
    hops=st.integers(0, 255),
    xid=st.integers(0, 2**32 - 1),
    secs=st.integers(0, 2**16 - 1),
    flags=st.integers(0, 2**16 - 1),
    ciaddr=addresses,
    yiaddr=addresses,
    siaddr=addresses,
    giaddr=addresses,
    chaddr=st.binary(min_size=6, max_size=6),
    sname=st.binary(max_size=63).filter(lambda b: b"\0" not in b),
    file=st.binary(max_size=127).filter(lambda b: b"\0" not in b),
    options=st.builds(
        lambda kind, rest: {**rest, 53: bytes([kind])},
        st.integers(1, 8),
        st.dictionaries(
            st.integers(1, 254).filter(lambda c: c != 52), st.binary(max_size=600), max_size=5
        ),
    ),
)


def message(options: bytes, **fields: bytes) -> bytes:
    """A message with these option bytes and otherwise empty fields."""
    head = HEADER.pack(
        1,
        1,
        6,
        0,
        9,
        0,
        0,
        *([bytes(4)] * 4),
        bytes(16),
        fields.get("sname", b""),
        fields.get("file", b""),
        COOKIE,
    )
    return head + options


def test_layout() -> None:
    """RFC 2131 figure 1, byte by byte."""
    data = encode(
        Packet(
            op=2,
            xid=0x01020304,
            secs=5,
            flags=0x8000,
            ciaddr=IPv4Address("1.1.1.1"),
            yiaddr=IPv4Address("2.2.2.2"),
            siaddr=IPv4Address("3.3.3.3"),
            giaddr=IPv4Address("4.4.4.4"),
            chaddr=bytes.fromhex("525400123456"),
            sname=b"server",
            file=b"boot",
            options={53: b"\x05", 1: b"\xff\xff\xff\0"},
        )
    )
    assert data[:44] == bytes.fromhex(
        "02010600 01020304 0005 8000 01010101 02020202 03030303 04040404"
        "525400123456 00000000000000000000"
    )
    assert data[44:108] == b"server".ljust(64, b"\0")
    assert data[108:236] == b"boot".ljust(128, b"\0")
    assert data[236:240] == b"\x63\x82\x53\x63"
    assert data[240:] == (b"\x35\x01\x05\x01\x04\xff\xff\xff\0\xff").ljust(60, b"\0")


@given(packets)
def test_round_trip(packet: Packet) -> None:
    data = encode(packet)
    assert len(data) >= 300
    if len(data) <= INPUT_LIMIT:
        assert decode(data) == packet


@given(packets, st.data())
def test_truncated(packet: Packet, data: st.DataObject) -> None:
    """Cut anywhere in front of the end option, a message is refused or has fewer options."""
    whole = encode(packet)
    cut = data.draw(st.integers(0, min(len(whole), INPUT_LIMIT) - 1))
    try:
        got = decode(whole[:cut])
    except PacketError:
        return
    assert all(packet.options[code].startswith(value) for code, value in got.options.items())


@given(st.binary(max_size=700))
def test_nonsense(data: bytes) -> None:
    for candidate in (data, message(data), message(b"\x35\x01\x01" + data)):
        try:
            decode(candidate)
        except PacketError as error:
            assert str(error).startswith("not a DHCP message we can use: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated header"),
        (bytes(239), "truncated header"),
        (bytes(240), "no DHCP cookie"),
        (bytes(INPUT_LIMIT + 1), "too long"),
        (message(b"")[:1] + b"\x06" + message(b"")[2:], "hardware is not Ethernet"),
        (message(b"")[:2] + b"\x10" + message(b"")[3:], "hardware is not Ethernet"),
        (message(b"\xff"), "no message type"),
        (message(b"\x35\x02\x01\x01\xff"), "no message type"),
        (message(b"\x35\x01\x09\xff"), "no message type"),
        (message(b"\x35\x01\x00\xff"), "no message type"),
        (message(b"\x35"), "option runs past the end"),
        (message(b"\x35\x05\x01"), "option runs past the end"),
        (message(b"\x35\x01\x01\x34\x01\x01", file=b"\x0c\xff"), "option runs past the end"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PacketError) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_options_elsewhere_and_in_pieces() -> None:
    """RFC 2132 option 52 and RFC 3396: pieces are joined in the order options, file, sname."""
    data = message(
        b"\0\0\x35\x01\x03\x34\x01\x03\x0c\x02ab\xff",
        file=b"\x0c\x02cd\x32\x04\x01\x02\x03\x04\xff",
        sname=b"\x0c\x01e\xff",
    )
    packet = decode(data)
    assert packet.message_type is MessageType.REQUEST
    assert packet.options[Option.HOST_NAME] == b"abcde"
    assert packet.address(Option.REQUESTED_IP) == IPv4Address("1.2.3.4")
    assert packet.address(Option.HOST_NAME) is None
    assert packet.address(Option.SERVER_ID) is None
    assert (packet.file, packet.sname) == (b"", b"")


def test_fit() -> None:
    """What does not fit is left out whole; what comes behind it may still fit."""
    options = {1: bytes(4), 12: bytes(300), 6: bytes(8)}
    room = HEADER.size + 1
    assert list(fit(options, room + 6 + 304 + 10)) == [1, 12, 6]
    assert list(fit(options, room + 6 + 303)) == [1, 6]
    assert list(fit(options, room + 16)) == [1, 6]
    assert fit(options, room + 5) == {}
    packet = Packet(options=fit({53: b"\x05", 12: bytes(255), 15: bytes(255)}, MAXIMUM_SIZE))
    assert len(encode(packet)) <= MAXIMUM_SIZE


def test_classless_routes() -> None:
    """The examples of RFC 3442."""
    router = IPv4Address("10.0.0.1")
    for network, expected in (
        ("0.0.0.0/0", "00"),
        ("10.0.0.0/8", "080a"),
        ("10.17.0.0/16", "100a11"),
        ("10.27.129.0/24", "180a1b81"),
        ("10.229.0.128/25", "190ae50080"),
        ("10.198.122.47/32", "200ac67a2f"),
    ):
        coded = classless_routes([(IPv4Network(network), router)])
        assert coded.hex() == expected + "0a000001"


@given(st.binary(max_size=2000))
def test_checksum(data: bytes) -> None:
    assert internet_checksum(data) == checksum(data)


@given(packets, addresses, addresses)
def test_datagram(packet: Packet, source: IPv4Address, destination: IPv4Address) -> None:
    payload = encode(packet)
    got = datagram(payload, source, destination)
    assert struct.unpack(">H", got[2:4])[0] == len(got) == 28 + len(payload)
    if len(payload) <= INPUT_LIMIT:
        frame = ethernet("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:01", 0x0800, got)
        assert dhcp_reply(frame) == packet
