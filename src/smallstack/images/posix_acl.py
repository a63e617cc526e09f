"""POSIX access control lists: from the text that archives carry to the bytes of the attribute.

Text: ``user::rw-,user:1000:r--,group::r--,mask::r--,other::r--``, with commas or newlines between,
with numbers where names stand, or the number behind a further colon. A bare name is looked up on
this machine, as tar does when it extracts. Bytes: linux/posix_acl_xattr.h.
"""

import grp
import pwd
import struct
from typing import Final

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_UNDEFINED: Final = 0xFFFFFFFF
_TAGS: Final = {
    ("user", False): 0x01,
    ("user", True): 0x02,
    ("group", False): 0x04,
    ("group", True): 0x08,
    ("mask", False): 0x10,
    ("other", False): 0x20,
}
_SHORT: Final = {"u": "user", "g": "group", "m": "mask", "o": "other"}


def parse_acl(text: str) -> bytes:
    """The value of ``system.posix_acl_access`` or ``_default``; raises ValueError."""
    entries = []
    for line in text.replace("\n", ",").split(","):
        entry = line.partition("#")[0].strip()
        if entry:
            entries.append(_parse_entry(entry))
    entries.sort(key=lambda e: (e[0], e[2]))
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _parse_entry(entry: str) -> tuple[int, int, int]:
    fields = entry.split(":")
    if len(fields) == 2:  # mask:rwx, other:rwx
        fields.insert(1, "")
    if len(fields) not in {3, 4}:
        raise ValueError(f"{entry[:80]!r} is no entry of an access control list")
    kind, who, permissions = fields[:3]
    tag = _TAGS.get((_SHORT.get(kind, kind), bool(who)))
    if tag is None:
        raise ValueError(f"{entry[:80]!r} is no entry of an access control list")
    number = _UNDEFINED
    if who:
        number = _identity(kind, fields[3] if len(fields) == 4 else who)
    bits = 0
    for letter in permissions:
        if letter not in "rwx-":
            raise ValueError(f"{permissions[:20]!r} are no permissions")
        bits |= {"r": 4, "w": 2, "x": 1, "-": 0}[letter]
    return tag, bits, number


def _identity(kind: str, who: str) -> int:
    if who.isascii() and who.isdecimal():
        if int(who) >= _UNDEFINED:
            raise ValueError(f"{who[:40]!r} is out of range")
        return int(who)
    try:
        return pwd.getpwnam(who).pw_uid if kind[0] == "u" else grp.getgrnam(who).gr_gid
    except (KeyError, ValueError):
        raise ValueError(
            f"{who[:40]!r} is not known here: make the image on a machine that knows it"
        ) from None


def is_minimal(acl: bytes) -> bool:
    """Whether a list says no more than the mode bits: file systems keep none for such."""
    return len(acl) == len(_VERSION) + 3 * _ENTRY.size
