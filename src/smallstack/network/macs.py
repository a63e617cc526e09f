"""Ethernet addresses: text, bytes, and the one that belongs to an IP address."""

import re
from ipaddress import IPv4Address

from smallstack.network.errors import BadMacError

_SEPARATED = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")
_DOTTED = re.compile(r"[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}")


def packed_mac(text: str) -> bytes:
    """The six bytes of ``52:54:00:…``, ``52-54-00-…`` or ``5254.00….…``. Raises BadMacError."""
    if _SEPARATED.fullmatch(text) or _DOTTED.fullmatch(text):
        return bytes.fromhex(re.sub(r"[.:-]", "", text))
    raise BadMacError(mac=text[:64])


def mac_text(packed: bytes) -> str:
    """``52:54:00:12:34:56``, lower case."""
    return packed.hex(":")


def mac_for_ip(ip: str) -> str:
    """The MAC that pool addresses get by custom: ``52:54:`` and the four octets of the IP."""
    return mac_text(b"\x52\x54" + IPv4Address(ip).packed)
