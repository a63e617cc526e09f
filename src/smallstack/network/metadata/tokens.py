"""Session tokens of the metadata service, as EC2's version 2 has them; no I/O.

A program in a guest that can be talked into fetching a URL, but not into a PUT with a header of its
own, gets no token, and so nothing that needs one. A token is 56 characters: its end and the VM it
was given to, by a key that nobody else has. So there is nothing to keep or to bound, and none is
good for another VM, not even for the next one at the same address.
"""

import base64
import binascii
import hmac
import secrets
import struct
from typing import Final

from smallstack.proto.vm import VmInfo

MAX_SECONDS: Final = 21600
"""How long a token may last: six hours."""
_END: Final = struct.Struct(">Q")
_DIGEST: Final = "sha256"
_LENGTH: Final = 56
NANOSECONDS: Final = 1_000_000_000


def seconds_asked(text: str) -> int | None:
    """The life of a token, 1 to MAX_SECONDS; None for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    return int(text) if 1 <= int(text) <= MAX_SECONDS else None


class Tokens:
    """Makes and checks tokens; those of another instance, or another start, are no good here."""

    def __init__(self, key: bytes = b"") -> None:
        """``key``: 32 secret bytes, random ones unless given."""
        self._key = key or secrets.token_bytes(32)

    def issue(self, info: VmInfo, seconds: int, now: int) -> bytes:
        """A token for a VM; ``now`` in nanoseconds since the epoch."""
        end = _END.pack(now + seconds * NANOSECONDS)
        return base64.urlsafe_b64encode(end + self._seal(end, info))

    def is_good(self, token: str, info: VmInfo, now: int) -> bool:
        """Whether a VM has been given this token, and it is not over."""
        if len(token) != _LENGTH:
            return False
        try:
            raw = base64.b64decode(token.encode("ascii"), b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            return False
        end, seal = raw[: _END.size], raw[_END.size :]
        return hmac.compare_digest(seal, self._seal(end, info)) and now < _END.unpack(end)[0]

    def _seal(self, end: bytes, info: VmInfo) -> bytes:
        born = info.created_on.nanoseconds_since_epoch
        return hmac.digest(self._key, end + f"{info.address.ip_address} {born}".encode(), _DIGEST)
