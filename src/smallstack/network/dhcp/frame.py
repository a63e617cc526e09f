"""A DHCP reply as an IPv4 datagram, for a client that cannot answer ARP yet.

Headers: RFC 791 §3.1, RFC 768. The Ethernet header is the packet socket's.
"""

import struct
from ipaddress import IPv4Address

SERVER_PORT, CLIENT_PORT = 67, 68
_UDP = 17
_IP_HEADER = struct.Struct(">BBHHHBBH4s4s")
_UDP_HEADER = struct.Struct(">HHHH")


def datagram(payload: bytes, source: IPv4Address, destination: IPv4Address) -> bytes:
    """An IPv4 packet with ``payload`` from port 67 to port 68."""
    size = _UDP_HEADER.size + len(payload)
    pseudo = source.packed + destination.packed + struct.pack(">HH", _UDP, size)
    bare = _UDP_HEADER.pack(SERVER_PORT, CLIENT_PORT, size, 0)
    checksum = internet_checksum(pseudo + bare + payload) or 0xFFFF
    udp = _UDP_HEADER.pack(SERVER_PORT, CLIENT_PORT, size, checksum)
    fields = (0x45, 0x10, _IP_HEADER.size + size, 0, 0x4000, 64, _UDP)
    addresses = (source.packed, destination.packed)
    checksum = internet_checksum(_IP_HEADER.pack(*fields, 0, *addresses))
    return _IP_HEADER.pack(*fields, checksum, *addresses) + udp + payload


def internet_checksum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum of 16-bit words (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    # 2**16 is 1 modulo 65535, so the sum of the words is the whole number modulo 65535.
    total = int.from_bytes(data, "big") % 0xFFFF
    if total == 0 and any(data):
        total = 0xFFFF
    return total ^ 0xFFFF
