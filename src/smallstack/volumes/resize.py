"""Giving a raw disk another size, with the file system on it.

What is known is an ext2, 3 or 4 file system that is the whole disk, or the one partition of an MBR;
anything else on a disk that grows is left to the guest, and keeps a disk from being made smaller.
A guest's file system may be hostile: what works on it is confined (see confined.py).

Sources: the kernel's Documentation/filesystems/ext4/super.rst; UEFI Specification 2.10 §5.2.1.
"""

import asyncio
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smallstack.outlast import outlast
from smallstack.volumes.confined import STDIN, Done, MissingProgram, User, run_confined
from smallstack.volumes.errors import ResizeError

SECTOR: Final = 512
BLOCK: Final = 4096
"""Bytes of the largest block of such a file system; a disk to be resized has a multiple of them."""
_SUPERBLOCK: Final = 1024
_EXT_MAGIC_AT: Final = 0x38
_EXT_MAGIC: Final = b"\x53\xef"
_ENTRIES_AT, _ENTRY_COUNT = 446, 4
_ENTRY: Final = struct.Struct("<B3sB3sII")
_SIGNATURE: Final = b"\x55\xaa"
_LINUX: Final = 0x83
_LAST_32: Final = 0xFFFFFFFF
_AT_ONCE: Final = 64 << 20
_FIXED: Final = 2
"""The highest exit code of e2fsck that is no failure: errors were found and corrected."""


@dataclass(frozen=True, slots=True)
class FileSystemPlace:
    """Where the file system is: from which byte on, and in which entry of the MBR, if any."""

    offset: int
    size: int
    entry: int | None


def find_file_system(fd: int, size: int) -> FileSystemPlace | None:
    """The ext file system on a disk of ``size`` bytes, if it has one that is known how to resize.

    Blocks. Raises OSError.
    """
    if _has_ext(fd, 0):
        return FileSystemPlace(0, size, None)
    table = os.pread(fd, SECTOR, 0)
    if len(table) < SECTOR or table[-2:] != _SIGNATURE:
        return None
    entries = [
        (number, *_ENTRY.unpack_from(table, _ENTRIES_AT + number * _ENTRY.size))
        for number in range(_ENTRY_COUNT)
    ]
    used = [entry for entry in entries if entry[3]]
    if len(used) != 1:
        return None
    number, _, _, kind, _, start, sectors = used[0]
    place = FileSystemPlace(start * SECTOR, sectors * SECTOR, number)
    inside = place.offset > 0 and place.offset + place.size <= size
    return place if kind == _LINUX and inside and _has_ext(fd, place.offset) else None


async def grow_file_system(
    fd: int, place: FileSystemPlace, disk_size: int, user: User, name: str
) -> None:
    """Have the file system, and its partition, end where a disk of ``disk_size`` bytes does.

    The file has that size then; one with a partition is shorter meanwhile. It is the ``user``'s
    meanwhile. Raises ResizeError, OSError; the file system may then be damaged.
    """
    end = disk_size if place.entry is None else min(disk_size, _LAST_32 * SECTOR + place.offset)
    size = (end - place.offset) // BLOCK * BLOCK
    # resize2fs makes a file as long as the file system, wherever in the file that begins.
    if size < place.offset + place.size:
        await outlast(asyncio.to_thread(set_size, fd, disk_size))
        return  # less than what lies before the partition is left to the guest
    if place.entry is not None:
        await outlast(asyncio.to_thread(_set_partition, fd, place.entry, size))
    await outlast(asyncio.to_thread(os.ftruncate, fd, size))
    await _resize(fd, place.offset, size, disk_size, user, name)
    await outlast(asyncio.to_thread(set_size, fd, disk_size))


async def shrink_file_system(
    path: Path, fd: int, place: FileSystemPlace, disk_size: int, user: User, name: str
) -> None:
    """The same for a disk that becomes smaller, the file ``fd`` at ``path`` with it.

    The file system is resized in a file of its own beside it, ``PATH~``, which is gone afterwards.
    """
    size = (disk_size - place.offset) // BLOCK * BLOCK
    if size <= 0:
        raise ResizeError(name=name, detail="its file system begins behind that size")
    part_path = path.with_name(path.name + "~")
    part = await asyncio.to_thread(_open_new, part_path)
    try:
        await _copy(fd, place.offset, part, 0, place.size)
        await _resize(part, 0, size, place.size, user, name)
        await outlast(asyncio.to_thread(os.ftruncate, fd, place.offset))
        await _copy(part, 0, fd, place.offset, size)
        if place.entry is not None:
            await outlast(asyncio.to_thread(_set_partition, fd, place.entry, size))
        await outlast(asyncio.to_thread(set_size, fd, disk_size))
    finally:
        os.close(part)
        await outlast(asyncio.to_thread(part_path.unlink))


def set_size(fd: int, size: int) -> None:
    """Give a file a size, durably. Blocks. Raises OSError."""
    os.ftruncate(fd, size)
    os.fsync(fd)


async def _resize(fd: int, offset: int, size: int, largest: int, user: User, name: str) -> None:
    """Check a file system and give it ``size`` bytes."""
    if user is not None:
        await outlast(asyncio.to_thread(os.fchown, fd, *user))
    try:
        device = f"{STDIN}?offset={offset}" if offset else STDIN
        done = await _run("e2fsck", ["-f", "-y", device], fd, largest, user, name)
        if not 0 <= done.status <= _FIXED:
            raise ResizeError(name=name, detail=f"its file system is damaged: {_words(done)}")
        arguments = [device, f"{size // SECTOR}s"]
        done = await _run("resize2fs", arguments, fd, largest, user, name)
        if done.status:
            raise ResizeError(name=name, detail=f"its file system stays as it is: {_words(done)}")
    finally:
        if user is not None:
            os.fchown(fd, os.geteuid(), os.getegid())


async def _copy(source: int, start: int, target: int, to: int, length: int) -> None:
    """Copy a range of a file, holes left out; the target is empty from there on."""
    await outlast(asyncio.to_thread(os.ftruncate, target, to + length))
    done = 0
    while done < length:
        done = await outlast(asyncio.to_thread(_copy_some, source, start, target, to, done, length))


def _copy_some(source: int, start: int, target: int, to: int, done: int, length: int) -> int:
    """Copy the next piece of data; how far it is done then."""
    try:
        data = os.lseek(source, start + done, os.SEEK_DATA) - start
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return length  # there is nothing any more
    if data >= length:
        return length
    end = min(os.lseek(source, start + data, os.SEEK_HOLE) - start, length, data + _AT_ONCE)
    while data < end:
        data += os.copy_file_range(source, target, end - data, start + data, to + data)
    return end


def _open_new(path: Path) -> int:
    path.unlink(missing_ok=True)  # of a crash
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


async def _run(
    program: str, arguments: list[str], fd: int, size: int, user: User, name: str
) -> Done:
    try:
        return await run_confined(program, arguments, fd, None, size, user)
    except MissingProgram as missing:
        raise ResizeError(
            name=name, detail=f"{missing} is not there; install e2fsprogs and util-linux"
        ) from None


def _set_partition(fd: int, entry: int, size: int) -> None:
    os.pwrite(fd, struct.pack("<I", size // SECTOR), _ENTRIES_AT + entry * _ENTRY.size + 12)


def _has_ext(fd: int, offset: int) -> bool:
    return os.pread(fd, 2, offset + _SUPERBLOCK + _EXT_MAGIC_AT) == _EXT_MAGIC


def _words(done: Done) -> str:
    if done.status < 0:
        return f"the program was ended by signal {-done.status}"
    lines = [line.strip() for line in done.said.decode(errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith(("e2fsck 1", "resize2fs 1"))]
    return (said or [f"status {done.status}"])[-1][:200]
