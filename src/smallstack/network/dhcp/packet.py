"""DHCP messages as bytes and back; no I/O.

Format: RFC 2131 §2 (the message), RFC 2132 (options), RFC 3396 (options in pieces), RFC 3442
(classless routes), RFC 4039 (rapid commit). Input is whatever a guest cares to send: `decode`
either returns a message or raises `PacketError`, and reads no further than the bytes it is given.

::

     0 op │ 1 htype │ 2 hlen │ 3 hops │ 4 xid │ 8 secs │ 10 flags │ 12 ciaddr │ 16 yiaddr
    20 siaddr │ 24 giaddr │ 28 chaddr (16) │ 44 sname (64) │ 108 file (128) │ 236 cookie │ options
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

from smallstack.telemetry.errors import SmallStackError

COOKIE = b"\x63\x82\x53\x63"
HEADER = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")
MINIMUM_SIZE = 300
"""Old clients and relays drop anything shorter (RFC 1542 §2.1)."""
MAXIMUM_SIZE = 576 - 28
"""What every client must take (RFC 2131 §2): a 576-byte datagram less IP and UDP headers."""
INPUT_LIMIT = 4096
"""Bytes of the longest message that is looked at."""
BROADCAST_FLAG = 0x8000
ANY = IPv4Address(0)


class MessageType(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options we read or write."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    REQUESTED_IP = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MAXIMUM_SIZE = 57
    CLIENT_ID = 61
    RAPID_COMMIT = 80
    CLASSLESS_ROUTES = 121
    END = 255


class PacketError(SmallStackError):
    """not a DHCP message we can use: {reason}"""


@dataclass(kw_only=True)
class Packet:
    """One message. ``options`` keep their order, which is the order on the wire."""

    op: int = 1
    htype: int = 1
    hlen: int = 6
    hops: int = 0
    xid: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: IPv4Address = ANY
    yiaddr: IPv4Address = ANY
    siaddr: IPv4Address = ANY
    giaddr: IPv4Address = ANY
    chaddr: bytes = bytes(6)
    sname: bytes = b""
    file: bytes = b""
    options: dict[int, bytes] = field(default_factory=dict)

    @property
    def message_type(self) -> MessageType:
        """Option 53; `decode` has checked it."""
        return MessageType(self.options[Option.MESSAGE_TYPE][0])

    @property
    def is_broadcast(self) -> bool:
        """Whether the client cannot take a reply to an address it does not have yet."""
        return bool(self.flags & BROADCAST_FLAG)

    @property
    def parameters(self) -> bytes | None:
        """The option codes that the client asks for, in its order of preference."""
        return self.options.get(Option.PARAMETERS)

    def address(self, option: int) -> IPv4Address | None:
        """An option that is one address; None if it is absent or has another size."""
        value = self.options.get(option)
        return IPv4Address(value) if value is not None and len(value) == 4 else None


def decode(data: bytes) -> Packet:
    """The message in ``data``, which is the whole payload of a datagram. Raises PacketError."""
    if len(data) > INPUT_LIMIT:
        raise PacketError(reason="too long")
    if len(data) < HEADER.size:
        raise PacketError(reason="truncated header")
    (
        op,
        htype,
        hlen,
        hops,
        xid,
        secs,
        flags,
        ciaddr,
        yiaddr,
        siaddr,
        giaddr,
        chaddr,
        sname,
        file,
        cookie,
    ) = HEADER.unpack_from(data)
    if cookie != COOKIE:
        raise PacketError(reason="no DHCP cookie")
    if htype != 1 or hlen != 6:
        raise PacketError(reason="hardware is not Ethernet")
    options: dict[int, bytes] = {}
    _read_options(data[HEADER.size :], options)
    overload = options.get(Option.OVERLOAD, b"\0")[:1] or b"\0"
    if overload[0] & 1:
        _read_options(file, options)
        file = b""
    if overload[0] & 2:
        _read_options(sname, options)
        sname = b""
    kind = options.get(Option.MESSAGE_TYPE, b"")
    if len(kind) != 1 or not 1 <= kind[0] <= 8:
        raise PacketError(reason="no message type")
    return Packet(
        op=op,
        htype=htype,
        hlen=hlen,
        hops=hops,
        xid=xid,
        secs=secs,
        flags=flags,
        ciaddr=IPv4Address(ciaddr),
        yiaddr=IPv4Address(yiaddr),
        siaddr=IPv4Address(siaddr),
        giaddr=IPv4Address(giaddr),
        chaddr=chaddr[:6],
        sname=sname.split(b"\0", 1)[0],
        file=file.split(b"\0", 1)[0],
        options=options,
    )


def _read_options(data: bytes, options: dict[int, bytes]) -> None:
    """Add the options in ``data``; pieces of one option are joined (RFC 3396)."""
    at, end = 0, len(data)
    while at < end:
        code = data[at]
        if code == Option.END:
            return
        if code == Option.PAD:
            at += 1
            continue
        if at + 2 > end or at + 2 + data[at + 1] > end:
            raise PacketError(reason="option runs past the end")
        value = data[at + 2 : at + 2 + data[at + 1]]
        options[code] = options[code] + value if code in options else value
        at += 2 + data[at + 1]


def encode(packet: Packet) -> bytes:
    """The message as bytes, padded to the size old clients want.

    ``sname`` and ``file`` are cut to their fields' sizes.
    """
    out = bytearray(
        HEADER.pack(
            packet.op,
            packet.htype,
            packet.hlen,
            packet.hops,
            packet.xid,
            packet.secs,
            packet.flags,
            packet.ciaddr.packed,
            packet.yiaddr.packed,
            packet.siaddr.packed,
            packet.giaddr.packed,
            packet.chaddr.ljust(16, b"\0"),
            packet.sname[:63],
            packet.file[:127],
            COOKIE,
        )
    )
    for code, value in packet.options.items():
        out += _pieces(code, value)
    out.append(Option.END)
    return bytes(out.ljust(MINIMUM_SIZE, b"\0"))


def _pieces(code: int, value: bytes) -> bytes:
    """An option, in pieces of 255 bytes if it is longer (RFC 3396)."""
    if len(value) <= 255:
        return bytes((code, len(value))) + value
    pieces = (value[at : at + 255] for at in range(0, len(value), 255))
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def fit(options: Mapping[int, bytes], limit: int) -> dict[int, bytes]:
    """The options, in order, that fit into a message of ``limit`` bytes; what does not is left
    out whole."""
    room = limit - HEADER.size - 1
    kept: dict[int, bytes] = {}
    for code, value in options.items():
        size = len(_pieces(code, value))
        if size <= room:
            kept[code] = value
            room -= size
    return kept


def addresses(values: Iterable[IPv4Address]) -> bytes:
    """An option's value that is a list of addresses."""
    return b"".join(value.packed for value in values)


def classless_routes(routes: Iterable[tuple[IPv4Network, IPv4Address]]) -> bytes:
    """Option 121: destinations and routers; router 0.0.0.0 is the link itself (RFC 3442)."""
    out = bytearray()
    for network, router in routes:
        octets = (network.prefixlen + 7) // 8
        out.append(network.prefixlen)
        out += network.network_address.packed[:octets] + router.packed
    return bytes(out)
