"""Ethernet frames for tests, built by hand."""

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from smallstack.network.dhcp.packet import MessageType, Option, Packet, decode, encode
from smallstack.network.macs import packed_mac

BROADCAST = "ff:ff:ff:ff:ff:ff"
VNET_HEADER = bytes(10)


def ethernet(destination: str, source: str, kind: int, payload: bytes, tags: bytes = b"") -> bytes:
    """A frame; ``tags`` stand between the addresses and the type."""
    return packed_mac(destination) + packed_mac(source) + tags + struct.pack(">H", kind) + payload


def checksum(data: bytes) -> int:
    """RFC 1071, word by word: the slow, obvious reference."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    """An IPv4 packet; ``fragment`` is the field of flags and offset."""
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        fragment,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(destination).packed,
    )
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def udp(source: int, destination: int, payload: bytes) -> bytes:
    """A UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


def arp_request(mac: str, sender: str, target: str) -> bytes:
    """Who has ``target``? Broadcast."""
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
    body += packed_mac(mac) + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed
    return ethernet(BROADCAST, mac, 0x0806, body)


@dataclass
class Discover:
    """A DHCPDISCOVER whose every part can be forged."""

    mac: str
    chaddr: str | None = None
    source: str = "0.0.0.0"
    tags: bytes = b""
    fragment: int = 0
    xid: int = 0x12345678
    kind: MessageType = MessageType.DISCOVER
    options: dict[int, bytes] = field(default_factory=dict)

    def message(self) -> bytes:
        """The DHCP message alone."""
        options = {int(Option.MESSAGE_TYPE): bytes((self.kind,)), **self.options}
        hardware = packed_mac(self.chaddr or self.mac)
        return encode(Packet(xid=self.xid, chaddr=hardware, options=options))

    def frame(self) -> bytes:
        """The whole frame."""
        datagram = udp(68, 67, self.message())
        packet = ipv4(self.source, "255.255.255.255", 17, datagram, self.fragment)
        return ethernet(BROADCAST, self.mac, 0x0800, packet, self.tags)


def dhcp_reply(frame: bytes) -> Packet | None:
    """The DHCP message to port 68 in a frame, if it is one, its checksums verified."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 17 or frame[36:38] != b"\x00\x44":
        return None
    header, datagram = frame[14:34], frame[34:]
    assert checksum(header) == 0
    pseudo = header[12:20] + struct.pack(">HH", 17, len(datagram))
    assert checksum(pseudo + datagram) == 0
    return decode(datagram[8:])
