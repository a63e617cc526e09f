"""Ethernet addresses as text and as bytes."""

import re

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
