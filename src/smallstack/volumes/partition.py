"""The partition table of a root disk, and where its boot loader goes.

::

    MBR  BIOS, up to 2 TiB  boot.img │ core.img … 1 MiB │ root …
    GPT  BIOS, above 2 TiB  boot.img │ table │ core.img … 1 MiB │ root … │ table again
    GPT  UEFI               no code │ table … 1 MiB │ EFI system, 128 MiB │ root … │ table again

The root is the first entry of every table, whatever lies before it on the disk, so that the first
disk's root is always ``/dev/vda1``, and GRUB's ``(hd0,msdos1)`` or ``(hd0,gpt1)``.

Sources: UEFI Specification 2.10 §5 (MBR, GPT); GRUB Manual 2.06, "BIOS installation".
"""

import os
import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from smallstack.proto.enums import FirmwareType
from smallstack.volumes.errors import RootSizeError

SECTOR: Final = 512
MIB: Final = 1 << 20
PARTITION_OFFSET: Final = MIB
"""Where the first partition begins, in bytes; the gap before it has room for a boot loader."""
EFI_SIZE: Final = 128 * MIB
"""Bytes of an EFI system partition."""
MBR_LIMIT: Final = 2 << 40
"""Bytes of the largest disk that gets an MBR alone: its sectors are 32-bit numbers."""

_LINUX: Final = 0x83
_PROTECTIVE: Final = 0xEE
_ACTIVE: Final = 0x80
_NO_CHS: Final = b"\xfe\xff\xff"  # beyond what cylinders, heads and sectors can say
_ENTRY: Final = struct.Struct("<B3sB3sII")
_SIGNATURE_AT: Final = 440
_ENTRIES_AT: Final = 446
_LAST_32: Final = 0xFFFFFFFF

_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_GPT_ENTRIES: Final = 128
_GPT_TABLE: Final = _GPT_ENTRIES * _GPT_ENTRY.size
_GPT_FIRST_SECTOR: Final = 2 + _GPT_TABLE // SECTOR
_BIOS_BOOT_SECTOR: Final = 40  # the first whole 4 KiB behind the table
_TYPE_LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_TYPE_EFI: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_TYPE_BIOS_BOOT: Final = uuid.UUID("21686148-6449-6e6f-744e-656564454649")


class Scheme(Enum):
    """How a disk is divided, and with that which boot loader fits."""

    MBR = "mbr"
    GPT = "gpt"
    EFI = "efi"


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``offset`` to ``offset + size`` of a disk."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Division:
    """A divided disk. ``loader`` is where the boot loader goes: core.img or a FAT file system."""

    scheme: Scheme
    root: Extent
    loader: Extent
    writes: tuple[tuple[int, bytes], ...]
    """The tables: byte offset and content."""


def scheme_of(size: int, firmware: FirmwareType) -> Scheme:
    """How a disk of ``size`` bytes is divided for a firmware."""
    if firmware is FirmwareType.UEFI:
        return Scheme.EFI
    return Scheme.GPT if size > MBR_LIMIT else Scheme.MBR


def divide(size: int, firmware: FirmwareType, seed: bytes) -> Division:
    """Divide a disk of ``size`` bytes; ``seed``, 16 bytes or more, tells it from others.

    Raises RootSizeError for a disk without room for a root.
    """
    scheme = scheme_of(size, firmware)
    if scheme is Scheme.MBR:
        table = partition_table(size, seed[-4:])
        root = Extent(PARTITION_OFFSET, size - PARTITION_OFFSET)
        loader = Extent(SECTOR, PARTITION_OFFSET - SECTOR)
        return Division(scheme, root, loader, ((0, table),))
    start = PARTITION_OFFSET + (EFI_SIZE if scheme is Scheme.EFI else 0)
    # Partitions end at a whole MiB; the last one holds the second table.
    root = Extent(start, (size - _GPT_TABLE - SECTOR) // MIB * MIB - start)
    if root.size <= 0 or size % SECTOR:
        least = start + MIB + _GPT_TABLE + SECTOR
        detail = f"it takes {least} at least, in whole sectors of {SECTOR}"
        raise RootSizeError(size=size, detail=detail)
    entries = [(_TYPE_LINUX, root, "root")]
    if scheme is Scheme.EFI:
        loader = Extent(PARTITION_OFFSET, EFI_SIZE)
        entries.append((_TYPE_EFI, loader, "EFI system partition"))
    else:
        first = _BIOS_BOOT_SECTOR * SECTOR
        loader = Extent(first, PARTITION_OFFSET - first)
        entries.append((_TYPE_BIOS_BOOT, loader, "BIOS boot partition"))
    return Division(scheme, root, loader, _gpt(size, entries, seed))


def partition_table(size: int, signature: bytes) -> bytes:
    """The first sector of a disk of ``size`` bytes; ``signature``: 4 bytes that tell disks apart.

    One bootable Linux partition from 1 MiB on. Raises RootSizeError above 2 TiB, which this kind
    of table cannot describe, and for a disk without room for a partition.
    """
    sectors = (size - PARTITION_OFFSET) // SECTOR
    if not 0 < sectors <= _LAST_32:
        detail = f"its partition table can describe {PARTITION_OFFSET + SECTOR} to {MBR_LIMIT}"
        raise RootSizeError(size=size, detail=detail)
    entry = _ENTRY.pack(
        _ACTIVE, b"\x20\x21\x00", _LINUX, _NO_CHS, PARTITION_OFFSET // SECTOR, sectors
    )
    return _first_sector(entry, signature)


def root_of(fd: int, size: int) -> Extent:
    """Where the root lies on a disk of ``size`` bytes that `divide` has divided.

    What is there is believed only as far as it lies on the disk. Raises OSError.
    """
    head = os.pread(fd, 2 * SECTOR + _GPT_ENTRY.size, 0)
    if len(head) == 2 * SECTOR + _GPT_ENTRY.size and head[_ENTRIES_AT + 4] == _PROTECTIVE:
        _, _, first, last, _, _ = _GPT_ENTRY.unpack_from(head, 2 * SECTOR)
        offset, end = first * SECTOR, (last + 1) * SECTOR
        if PARTITION_OFFSET <= offset < end <= size:
            return Extent(offset, end - offset)
    return Extent(PARTITION_OFFSET, size - PARTITION_OFFSET)


def write_parts(fd: int, parts: Iterable[tuple[int, bytes]]) -> None:
    """Write each content at its byte offset. Raises OSError."""
    for offset, data in parts:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def _first_sector(entry: bytes, signature: bytes) -> bytes:
    table = bytearray(SECTOR)
    table[_SIGNATURE_AT : _SIGNATURE_AT + 4] = signature
    table[_ENTRIES_AT : _ENTRIES_AT + len(entry)] = entry
    table[-2:] = b"\x55\xaa"
    return bytes(table)


def _gpt(
    size: int, entries: list[tuple[uuid.UUID, Extent, str]], seed: bytes
) -> tuple[tuple[int, bytes], ...]:
    sectors = size // SECTOR
    protective = _ENTRY.pack(
        0, b"\x00\x02\x00", _PROTECTIVE, b"\xff\xff\xff", 1, min(sectors - 1, _LAST_32)
    )
    table = b"".join(
        _GPT_ENTRY.pack(
            kind.bytes_le,
            _guid(seed, number),
            extent.offset // SECTOR,
            (extent.offset + extent.size) // SECTOR - 1,
            0,
            name.encode("utf-16-le"),
        )
        for number, (kind, extent, name) in enumerate(entries, 1)
    ).ljust(_GPT_TABLE, b"\0")
    second = sectors - 1 - _GPT_TABLE // SECTOR
    # The boot code's sector holds no signature of a disk with a GPT; the GUID is that.
    return (
        (0, _first_sector(protective, bytes(4))),
        (SECTOR, _gpt_header(sectors, 1, 2, table, seed)),
        (2 * SECTOR, table),
        (second * SECTOR, table),
        ((sectors - 1) * SECTOR, _gpt_header(sectors, sectors - 1, second, table, seed)),
    )


def _gpt_header(sectors: int, own: int, table_at: int, table: bytes, seed: bytes) -> bytes:
    other = sectors - 1 if own == 1 else 1

    def pack(checksum: int) -> bytes:
        return _GPT_HEADER.pack(
            b"EFI PART",
            0x10000,
            _GPT_HEADER.size,
            checksum,
            0,
            own,
            other,
            _GPT_FIRST_SECTOR,
            sectors - 2 - _GPT_TABLE // SECTOR,
            _guid(seed, 0),
            table_at,
            _GPT_ENTRIES,
            _GPT_ENTRY.size,
            zlib.crc32(table),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _guid(seed: bytes, number: int) -> bytes:
    """A GUID of its own for the disk (0) and each partition, as it lies on disk."""
    made = bytearray(seed[:16])
    made[15] ^= number
    return uuid.UUID(bytes=bytes(made), version=4).bytes_le
