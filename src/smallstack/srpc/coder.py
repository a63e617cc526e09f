"""What the two codecs share: "not yet", and how much a peer may ask for."""

from enum import Enum
from typing import Final, Literal, TypeAlias

import msgspec


class NeedMore(Enum):
    """The type of :data:`NEED_MORE`."""

    NEED_MORE = "need more"


NeedMoreType: TypeAlias = Literal[NeedMore.NEED_MORE]

NEED_MORE: Final = NeedMore.NEED_MORE
"""What a decoder returns until the whole of a value was fed to it."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on what a peer can make a decoder do; beyond them the peer is at fault."""

    message: int = 64 << 20
    """Bytes of one gob message, or of one JSON value."""
    value: int = 64 << 20
    """Bytes of a gob value that comes in several messages."""
    depth: int = 32
    """Levels of nesting; at most 64."""
    types: int = 512
    """Types a stream defines."""
    type_fields: int = 8192
    """Fields of all these types together."""
    elements: int = 1 << 20
    """Elements of one list or map."""
    values: int = 4 << 20
    """Python objects made for one value, roughly."""
    inodes: int = 1 << 22
    """Inodes of one file-system tree."""


DEFAULT: Final = Limits()

IMAGE: Final = Limits(message=1 << 30, value=1 << 30)
"""For peers that may send whole images: a million inodes take some 250 MB."""
