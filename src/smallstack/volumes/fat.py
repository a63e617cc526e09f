"""A FAT32 file system with a few files, for an EFI system partition. Pure: bytes, no files.

Only what a firmware needs: names of 8.3 characters, files in one piece, nothing that could be
written to later is left out. Source: "Microsoft Extensible Firmware Initiative FAT32 File System
Specification", version 1.03.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from smallstack.volumes.errors import VolumeError

SECTOR: Final = 512
CLUSTER: Final = 2 * SECTOR
_RESERVED: Final = 32
_FATS: Final = 2
_LEAST_CLUSTERS: Final = 65525  # fewer would make it FAT16
_END: Final = 0x0FFFFFFF
_ROOT: Final = 2
_DIRECTORY: Final = 0x10
_VOLUME: Final = 0x08
_ARCHIVE: Final = 0x20
_DATE: Final = 0x21  # 1 January 1980: the same bytes whenever they are made
_BOOT: Final = struct.Struct("<3s8sHBHBHHBHHHIIIHHIHH12sBBBI11s8s")
_ENTRY: Final = struct.Struct("<11sBBBHHHHHHHI")
_LABEL: Final = b"EFI        "


class FatSpaceError(VolumeError):
    """an EFI system partition of {size} bytes has no room for {needed} bytes"""


@dataclass
class _Node:
    name: bytes
    data: bytes | None = None
    children: "dict[str, _Node]" = field(default_factory=dict)
    first: int = 0


def fat32(
    size: int, files: Mapping[str, bytes], *, hidden: int, volume_id: bytes
) -> list[tuple[int, bytes]]:
    """What is not zero in a new file system of ``size`` bytes: offset and content, ascending.

    ``files`` by path, ``EFI/BOOT/BOOTX64.EFI``: upper case, 8.3. ``hidden``: sectors before the
    partition; ``volume_id``: 4 bytes. Raises FatSpaceError, also when ``size`` is too little for
    FAT32.
    """
    sectors = size // SECTOR
    fat_sectors, clusters = _shape(sectors)
    root = _Node(b"")
    for path, data in files.items():
        *above, name = path.split("/")
        node = root
        for part in above:
            node = node.children.setdefault(part, _Node(_short(part)))
        node.children[name] = _Node(_short(name), data)
    table = [0x0FFFFFF8, _END]
    content: list[bytes] = []
    _place(root, _ROOT, table, content)
    used = len(table) - _ROOT
    if clusters < _LEAST_CLUSTERS or used > clusters:
        raise FatSpaceError(size=size, needed=used * CLUSTER)
    fat = struct.pack(f"<{len(table)}I", *table)
    boot = _boot_sector(sectors, fat_sectors, hidden, volume_id)
    information = _information(clusters - used, len(table))
    first_fat = _RESERVED * SECTOR
    data_at = first_fat + _FATS * fat_sectors * SECTOR
    return [
        (0, boot + information),
        (6 * SECTOR, boot + information),
        (first_fat, fat),
        (first_fat + fat_sectors * SECTOR, fat),
        (data_at, b"".join(content)),
    ]


def _shape(sectors: int) -> tuple[int, int]:
    """Sectors of one FAT, and clusters, of a file system of so many sectors."""
    fat = 1
    while True:
        clusters = (sectors - _RESERVED - _FATS * fat) * SECTOR // CLUSTER
        needed = -(-(clusters + _ROOT) * 4 // SECTOR)
        if needed <= fat:
            return fat, clusters
        fat = needed


def _place(root: _Node, first: int, table: list[int], content: list[bytes]) -> None:
    """Give directories and files their clusters, each in one piece, in the order of a walk."""

    def claim(node: _Node, length: int) -> None:
        count = max(1, -(-length // CLUSTER))
        node.first = len(table)
        table.extend([*range(node.first + 1, node.first + count), _END])

    def walk(node: _Node, parent: _Node | None) -> None:
        if node.data is not None:
            if node.data:
                claim(node, len(node.data))
                content.append(node.data.ljust(-(-len(node.data) // CLUSTER) * CLUSTER, b"\0"))
            return
        extra = 1 if parent is None else 2
        claim(node, (len(node.children) + extra) * _ENTRY.size)
        at = len(content)
        content.append(b"")
        for child in node.children.values():
            walk(child, node)
        entries = [_entry(_LABEL, _VOLUME, 0, 0)]
        if parent is not None:
            above = 0 if parent is root else parent.first
            entries = [_entry(b".".ljust(11), _DIRECTORY, node.first, 0)]
            entries.append(_entry(b"..".ljust(11), _DIRECTORY, above, 0))
        for child in node.children.values():
            kind = _DIRECTORY if child.data is None else _ARCHIVE
            entries.append(_entry(child.name, kind, child.first, len(child.data or b"")))
        made = b"".join(entries)
        content[at] = made.ljust(-(-len(made) // CLUSTER) * CLUSTER, b"\0")

    walk(root, None)
    assert root.first == first


def _short(name: str) -> bytes:
    stem, _, extension = name.partition(".")
    return stem.encode("ascii").ljust(8) + extension.encode("ascii").ljust(3)


def _entry(name: bytes, kind: int, first: int, size: int) -> bytes:
    return _ENTRY.pack(
        name, kind, 0, 0, 0, _DATE, _DATE, first >> 16, 0, _DATE, first & 0xFFFF, size
    )


def _boot_sector(sectors: int, fat_sectors: int, hidden: int, volume_id: bytes) -> bytes:
    fields = _BOOT.pack(
        b"\xeb\x58\x90",  # a jump behind the fields, to code there is none of
        b"SMALLSTK",
        SECTOR,
        CLUSTER // SECTOR,
        _RESERVED,
        _FATS,
        0,
        0,
        0xF8,
        0,
        63,
        255,
        hidden,
        sectors,
        fat_sectors,
        0,
        0,
        _ROOT,
        1,  # the information sector
        6,  # the second boot sector
        b"",
        0x80,
        0,
        0x29,
        int.from_bytes(volume_id, "little"),
        _LABEL,
        b"FAT32   ",
    )
    return fields.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _information(free: int, next_free: int) -> bytes:
    return (
        b"RRaA".ljust(484, b"\0")
        + b"rrAa"
        + struct.pack("<II", free, next_free)
        + bytes(12)
        + b"\0\0\x55\xaa"
    )
