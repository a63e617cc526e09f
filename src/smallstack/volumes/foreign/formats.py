"""Tells disk images apart, and refuses those that are not whole in themselves.

Only what a file says of itself is looked at, and only while it is imported: once it is a VM's disk
its bytes are the guest's, who may write any header.

======  =========================================================================================
qcow2   ``QFI\\xfb``; the rest is up to our own reader (csrc/qcow2.h)
VMDK    ``KDMV``: a sparse extent; taken if it holds its own descriptor, which names that one extent
        and no parent. A text that begins ``# Disk DescriptorFile`` names other files
VDI     0xbeda107f at byte 64; taken if dynamic or fixed, without a parent
raw     whatever else there is, but for formats that are known and not read
======  =========================================================================================

A program that follows such names would read any file of the machine for whoever sends an image, so
these checks stand before it. Sources: VMware's Virtual Disk Format 5.0; the layout of VirtualBox's
VDI header 1.1. Numbers are little-endian.
"""

import struct
from collections.abc import Callable
from enum import Enum
from typing import Final

SECTOR: Final = 512
HEAD: Final = 1 << 16
"""Bytes from which a format is told and, if it can be at all, refused."""
Read = Callable[[int, int], bytes]
"""``read(offset, length)`` of the file; fewer bytes at its end."""

_QCOW2: Final = b"QFI\xfb"
_VMDK: Final = b"KDMV"
_DESCRIPTOR: Final = b"# Disk DescriptorFile"
_VDI: Final = struct.pack("<I", 0xBEDA107F)
_VDI_AT: Final = 64
_UNREADABLE: Final = (
    (b"COWD", "VMDK of an ESX redo log"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
)

_VMDK_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
"""Magic, version, flags, capacity, grain size, descriptor's offset and size, entries of a grain
table, offsets of the spare and of the grain directory, size of all this; was it closed, line ends,
compression. Offsets and sizes are sectors."""
_AT_END: Final = (1 << 64) - 1
_FOOTER: Final = 2 * SECTOR
"""From the end of the file to the footer, a header that holds in place of the first."""
_MAX_DESCRIPTOR: Final = 128
"""Sectors; what writes VMDKs takes 20."""
_WHOLE: Final = (b"monolithicsparse", b"streamoptimized")
_ACCESS: Final = (b"RW", b"RDONLY", b"NOACCESS")
_ONE_OF_SEVERAL: Final = "it is one file of a VMDK of several: export it as a single file"
_NO_PARENT: Final = b"ffffffff"

_VDI_HEADER: Final = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
"""Text, magic, version, size of the header, type, flags, comment, offsets of the block map and of
the data, geometry (3), sector size, unused, size of the disk, block size, extra bytes of a block,
blocks, blocks in the file, and the UUIDs of image, snapshot, link and parent."""
_VDI_VERSION: Final = 0x00010001
_VDI_KINDS: Final = (1, 2)
_VDI_BLOCK: Final = 1 << 20


class DiskFormat(Enum):
    """How an image holds its disk."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"


class FormatError(ValueError):
    """Why an image is not taken: str() is the reason, without a name."""


def recognise(head: bytes) -> DiskFormat:
    """The format of an image that begins so (HEAD bytes, or all). Raises FormatError."""
    for magic, name in _UNREADABLE:
        if head.startswith(magic):
            raise FormatError(f"it is a {name} image, which is not read: convert it to qcow2")
    if head.startswith(_QCOW2):
        return DiskFormat.QCOW2
    if head.startswith((_VMDK, _DESCRIPTOR)):
        return DiskFormat.VMDK
    if head[_VDI_AT : _VDI_AT + 4] == _VDI:
        return DiskFormat.VDI
    return DiskFormat.RAW


def check_head(format_: DiskFormat, head: bytes) -> None:
    """Whether an image can be of that format, as far as HEAD bytes tell. Raises FormatError."""
    if format_ is DiskFormat.QCOW2 and not head.startswith(_QCOW2):
        raise FormatError("it is no qcow2 image")
    if format_ is DiskFormat.VMDK:
        _vmdk_header(head)
    if format_ is DiskFormat.VDI:
        _vdi_header(head)


def check_whole(format_: DiskFormat, read: Read, length: int) -> int:
    """The bytes of the disk in a VMDK or VDI file of ``length`` bytes. Raises FormatError."""
    return (check_vmdk if format_ is DiskFormat.VMDK else check_vdi)(read, length)


def check_vmdk(read: Read, length: int) -> int:
    """The bytes of the disk of a VMDK that is whole in itself. Raises FormatError."""
    capacity, place, sectors, directory = _vmdk_header(read(0, SECTOR))
    if directory == _AT_END:
        if length < _FOOTER + SECTOR or length % SECTOR:
            raise FormatError("it is cut off: its footer is missing")
        found, *_, directory = _vmdk_header(read(length - _FOOTER, SECTOR))
        if found != capacity or directory == _AT_END:
            raise FormatError("it is cut off, or its footer is damaged")
    if place == 0 or sectors == 0:
        raise FormatError(_ONE_OF_SEVERAL)
    if sectors > _MAX_DESCRIPTOR:
        raise FormatError(f"its descriptor has {sectors} sectors, more than {_MAX_DESCRIPTOR}")
    text = read(place * SECTOR, sectors * SECTOR) if place * SECTOR < length else b""
    _check_descriptor(text.partition(b"\0")[0], capacity)
    return capacity * SECTOR


def _vmdk_header(data: bytes) -> tuple[int, int, int, int]:
    """Sectors of the disk; place and sectors of the descriptor; where the grain directory is."""
    if data.startswith(_DESCRIPTOR):
        raise FormatError("it is only the descriptor of a VMDK: export it as a single file")
    if len(data) < _VMDK_HEADER.size or not data.startswith(_VMDK):
        raise FormatError("it is no VMDK image")
    header = _VMDK_HEADER.unpack_from(data)
    _, version, _, capacity, _, place, sectors, _, _, directory, *_ = header
    if not 1 <= version <= 3:
        raise FormatError(f"its VMDK version is {version}: there are 1 to 3")
    if capacity == 0:
        # Its descriptor would then be followed wherever it leads.
        raise FormatError("it refers to other files: export it as a single file")
    return capacity, place, sectors, directory


def _check_descriptor(text: bytes, capacity: int) -> None:
    fields: dict[bytes, bytes] = {}
    extents: list[list[bytes]] = []
    for line in text.splitlines():
        name, equals, value = line.partition(b"=")
        if equals:
            fields[name.strip().lower()] = value.strip().strip(b'"').lower()
        elif line.split(None, 1)[:1] and line.split(None, 1)[0].upper() in _ACCESS:
            extents.append(line.split(None, 3))
    kind = fields.get(b"createtype", b"")
    if not fields:
        raise FormatError(_ONE_OF_SEVERAL)
    if kind not in _WHOLE:
        raise FormatError(
            f"its kind of VMDK is {kind.decode(errors='replace')[:40]!r}: "
            "export it as a single file (monolithicSparse or streamOptimized)"
        )
    if b"parentfilenamehint" in fields or fields.get(b"parentcid", _NO_PARENT) != _NO_PARENT:
        raise FormatError("it is a difference from another disk: export the whole disk")
    if len(extents) != 1 or len(extents[0]) < 3 or extents[0][2].upper() != b"SPARSE":
        raise FormatError("it refers to other files: export it as a single file")
    if extents[0][1] != str(capacity).encode():
        raise FormatError("it is damaged: header and descriptor give different sizes")


def check_vdi(read: Read, length: int) -> int:
    """The bytes of the disk of a VDI that is whole in itself. Raises FormatError."""
    size, data_at, allocated = _vdi_header(read(0, _VDI_HEADER.size))
    if data_at + allocated * _VDI_BLOCK > length:
        raise FormatError(f"it was cut off after {length} bytes")
    return -(-size // SECTOR) * SECTOR


def _vdi_header(data: bytes) -> tuple[int, int, int]:
    """Bytes of the disk; where its data begin in the file; blocks that are there."""
    if len(data) < _VDI_HEADER.size or data[_VDI_AT : _VDI_AT + 4] != _VDI:
        raise FormatError("it is no VDI image")
    header = _VDI_HEADER.unpack_from(data)
    _, _, version, _, kind, _, _, _, data_at, *_ = header
    size, block, extra, blocks, allocated, _, _, link, parent = header[14:]
    if version != _VDI_VERSION:
        raise FormatError(f"its VDI version is {version >> 16}.{version & 0xFFFF}: 1.1 is read")
    if kind not in _VDI_KINDS or any(link) or any(parent):
        raise FormatError("it is a difference from another disk: export the whole disk")
    if block != _VDI_BLOCK or extra:
        raise FormatError(f"its blocks have {block} + {extra} bytes: 1 MiB is read")
    if size == 0 or allocated > blocks or blocks * _VDI_BLOCK < size:
        raise FormatError("its header is damaged")
    return size, data_at, allocated
