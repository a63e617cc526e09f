"""Which kernel an image boots, and what it says of itself.

An uncompressed kernel with a PVH entry says so in an ELF note: owner "Xen", type 18
(XEN_ELFNOTE_PHYS32_ENTRY in Xen's public/elfnote.h); QEMU's microvm enters it there. The
appliance's kernel has a second one, owner "SmallStack", type 1 (a patch in images/appliance): it
takes the rate of its timer by ``lapic_timer_hz=``. The files come from users' images: every offset
and length in them is checked, and at most 64 KiB of notes are read.
"""

import os
import struct
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

from smallstack.machine.errors import KernelError
from smallstack.proto.filesystem import FileSystem

_PVH_ENTRY = (b"Xen\0", 18)
_TIMER_RATE = (b"SmallStack\0", 1)
_PT_NOTE = 4
_NOTES_LIMIT = 64 * 1024
_HEADERS_LIMIT = 256
_KERNEL = b"vmlinuz-"
_INITRD = (b"initrd.img-", b"initramfs-")


class BootFiles(NamedTuple):
    """Inode indexes in an image's tree, and the names below /boot."""

    kernel: int
    initrd: int | None
    kernel_name: str


def find_kernel(tree: FileSystem) -> BootFiles:
    """The only ``/boot/vmlinuz-*`` and the only, or no, ``initrd.img-*`` or ``initramfs-*``.

    Raises KernelError with upstream's texts.
    """
    boot = tree.lookup(b"/boot")
    if boot is None:
        raise KernelError(
            detail="missing /boot directory: a kernel belongs there; a container image gets one by "
            "`imagetool add --platform`"
        )
    if not S_ISDIR(tree.inode(boot).mode):
        raise KernelError(detail="/boot is not a directory")
    kernels, initrds = [], []
    for name, inode in tree.children(boot):
        if name.startswith(_KERNEL):
            kernels.append((name, inode))
        elif name.startswith(_INITRD):
            initrds.append(inode)
    if len(kernels) > 1:
        raise KernelError(detail="multiple kernel images")
    if len(initrds) > 1:
        raise KernelError(detail="multiple initrd images")
    if not kernels:
        raise KernelError(detail="no kernel image found")
    name, kernel = kernels[0]
    if not S_ISREG(tree.inode(kernel).mode):
        raise KernelError(detail="kernel image is not a regular file")
    initrd = initrds[0] if initrds else None
    if initrd is not None and not S_ISREG(tree.inode(initrd).mode):
        raise KernelError(detail="initrd image is not a regular file")
    return BootFiles(kernel, initrd, name.decode(errors="replace"))


def is_pvh(path: Path) -> bool:
    """Whether ``path`` is an x86 ELF file with a PVH entry. Raises OSError."""
    return _has_note(path, _PVH_ENTRY)


def takes_timer_rate(path: Path) -> bool:
    """Whether the kernel ``path`` can do without PIT and PIC, told its timer's rate."""
    return _has_note(path, _TIMER_RATE)


def _has_note(path: Path, wanted: tuple[bytes, int]) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _is_noted(fd, wanted)
    finally:
        os.close(fd)


def _is_noted(fd: int, wanted: tuple[bytes, int]) -> bool:
    ident = os.pread(fd, 64, 0)
    # ELFCLASS32 or 64, little-endian, EM_386 or EM_X86_64.
    if len(ident) < 52 or ident[:4] != b"\x7fELF" or ident[5] != 1:
        return False
    if ident[4] == 2 and len(ident) == 64:
        machine, offset, entry_size, count = (
            *struct.unpack_from("<18xH12xQ", ident),
            *(struct.unpack_from("<54xHH", ident)),
        )
        layout, size = "<I4xQ16xQ", 56
    elif ident[4] == 1:
        machine, offset = struct.unpack_from("<18xH8xI", ident)
        entry_size, count = struct.unpack_from("<42xHH", ident)
        layout, size = "<II8xI", 32
    else:
        return False
    if machine not in {3, 62} or entry_size < size or not 0 < count <= _HEADERS_LIMIT:
        return False
    table = _read(fd, entry_size * count, offset)
    for start in range(0, len(table) - size + 1, entry_size):
        kind, at, length = struct.unpack_from(layout, table, start)
        if kind == _PT_NOTE and wanted in parse_notes(_read(fd, min(length, _NOTES_LIMIT), at)):
            return True
    return False


def _read(fd: int, length: int, offset: int) -> bytes:
    """Up to ``length`` bytes; none where ``offset`` is beyond what a file can have."""
    return os.pread(fd, length, offset) if offset < 1 << 62 else b""


def parse_notes(data: bytes) -> list[tuple[bytes, int]]:
    """(owner with its NUL, type) of the notes in a PT_NOTE segment, as far as they are whole.

    Name and description are each padded to 4 bytes (System V gABI, "Note Section").
    """
    notes = []
    at = 0
    while at + 12 <= len(data):
        name_size, description_size, kind = struct.unpack_from("<III", data, at)
        name_end = at + 12 + name_size
        at = (name_end + 3) // 4 * 4 + description_size
        if at > len(data):
            break
        notes.append((data[name_end - name_size : name_end], kind))
        at = (at + 3) // 4 * 4
    return notes
