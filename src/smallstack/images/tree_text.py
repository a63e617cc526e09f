"""Directories as text, as servers of file-system trees have them: a line for each entry.

::

    name/type/permissions/uid/gid/size/SHA-512\\n      numbers are decimal, the digest is hex

Type 0 is a file, 1 a directory (the digest is that of its own text; size 0: it is empty), 2 a
symlink (the digest is that of its target). Nothing else can be said: no times, no attributes.
"""

from enum import IntEnum
from itertools import pairwise
from typing import Final, NamedTuple

from smallstack.images.errors import TreeTextError
from smallstack.proto.kinds import HASH_SIZE, Hash

MAX_NAME: Final = 255
MAX_TEXT: Final = 64 << 20
"""Bytes of one directory's text."""
_FIELDS: Final = 7
_MAX: Final = (1 << 32) - 1
_MAX_SIZE: Final = (1 << 63) - 1
_LIMITS: Final = (("type", 2), ("permissions", _MAX), ("uid", _MAX), ("gid", _MAX))


class EntryType(IntEnum):
    """What an entry is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2


class Entry(NamedTuple):
    """One line; ``permissions`` without type bits, ``size`` in bytes."""

    name: bytes
    type: EntryType
    permissions: int
    uid: int
    gid: int
    size: int
    hash: Hash


def parse_tree_text(text: bytes) -> list[Entry]:
    """The entries, sorted by name; raises TreeTextError for what is no directory."""
    if len(text) > MAX_TEXT:
        raise TreeTextError(line=0, detail=f"it has more than {MAX_TEXT} bytes")
    if text and not text.endswith(b"\n"):
        raise TreeTextError(line=text.count(b"\n") + 1, detail="it is cut off")
    entries = [_entry(number, line) for number, line in enumerate(text.split(b"\n")[:-1], 1)]
    entries.sort()
    for one, other in pairwise(entries):
        if one.name == other.name:
            raise TreeTextError(line=0, detail=f"it names {one.name[:64]!r} twice")
    return entries


def _entry(number: int, line: bytes) -> Entry:
    parts = line.split(b"/")
    if len(parts) != _FIELDS:
        raise TreeTextError(line=number, detail=f"{len(parts)} fields, not {_FIELDS}")
    name, *numbers, size, digest = parts
    if not name or name in {b".", b".."} or b"\0" in name or len(name) > MAX_NAME:
        raise TreeTextError(line=number, detail=f"{name[:64]!r} is no name of a file")
    kind, permissions, uid, gid = (
        _number(number, what, text, limit)
        for (what, limit), text in zip(_LIMITS, numbers, strict=True)
    )
    if len(digest) != 2 * HASH_SIZE:
        raise TreeTextError(line=number, detail=f"a digest of {len(digest)} digits")
    try:
        hash_ = Hash(bytes.fromhex(digest.decode("ascii")))
    except ValueError:
        raise TreeTextError(line=number, detail="a digest that is not hex") from None
    return Entry(
        name,
        EntryType(kind),
        permissions & 0o7777,
        uid,
        gid,
        _number(number, "size", size, _MAX_SIZE),
        hash_,
    )


def _number(line: int, what: str, text: bytes, limit: int) -> int:
    # No sign, no blanks, no underscores; nor so many digits that reading them takes long.
    if not text.isdigit() or len(text) > 20 or int(text) > limit:
        raise TreeTextError(line=line, detail=f"{text[:32]!r} is no {what}")
    return int(text)
