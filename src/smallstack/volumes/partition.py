"""The partition table of a root disk: an MBR with one bootable Linux partition from 1 MiB on."""

import struct
from typing import Final

from smallstack.volumes.errors import RootSizeError

SECTOR: Final = 512
PARTITION_OFFSET: Final = 1 << 20
"""Where the root partition begins, in bytes; the gap before it has room for a boot loader."""

_LINUX: Final = 0x83
_ACTIVE: Final = 0x80
_NO_CHS: Final = b"\xfe\xff\xff"  # beyond what cylinders, heads and sectors can say
_ENTRY: Final = struct.Struct("<B3sB3sII")
_SIGNATURE_AT: Final = 440
_ENTRIES_AT: Final = 446


def partition_table(size: int, signature: bytes) -> bytes:
    """The first sector of a disk of ``size`` bytes; ``signature``: 4 bytes that tell disks apart.

    Raises RootSizeError above 2 TiB, which this kind of table cannot describe, and for a disk
    without room for a partition.
    """
    sectors = (size - PARTITION_OFFSET) // SECTOR
    if not 0 < sectors < 1 << 32:
        raise RootSizeError(size=size)
    entry = _ENTRY.pack(
        _ACTIVE, b"\x20\x21\x00", _LINUX, _NO_CHS, PARTITION_OFFSET // SECTOR, sectors
    )
    table = bytearray(SECTOR)
    table[_SIGNATURE_AT : _SIGNATURE_AT + 4] = signature
    table[_ENTRIES_AT : _ENTRIES_AT + len(entry)] = entry
    table[-2:] = b"\x55\xaa"
    return bytes(table)
