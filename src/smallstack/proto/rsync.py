"""Messages of the protocol by which a volume's receiver gets the blocks that it lacks.

The receiver sends a GetBlocksRequest and, raw, the SHA-512 of each full block it has. Back come
blocks that differ, each a Block and its raw bytes; then the rest of the volume, as a Block behind
those asked about, and a Block of size 0, which the rest is itself when there is none.
"""

from typing import ClassVar

from smallstack.proto.kinds import Message, Uint8, Uint64

HASH_BYTES = 64
"""Of SHA-512."""


class GetBlocksRequest(Message, kw_only=True):
    """What the receiver has: ``num_blocks`` blocks of 2 to the ``block_order`` bytes."""

    go_package: ClassVar[str] = "rsync"
    block_order: Uint8 = 0
    num_blocks: Uint64 = 0


class Block(Message, kw_only=True):
    """``size`` bytes follow; they go where the block of that index does."""

    go_package: ClassVar[str] = "rsync"
    error: str = ""
    index: Uint64 = 0
    size: Uint64 = 0
