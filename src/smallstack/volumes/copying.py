"""Copies of disks on this machine: sharing blocks where the file system can, else without holes."""

import asyncio
import os
from pathlib import Path
from typing import Final, Literal

from smallstack.durable import sync_directory
from smallstack.outlast import outlast
from smallstack.volumes.layer import reflink
from smallstack.volumes.qcow2 import write
from smallstack.volumes.qcow2.chain import Disk, Files

STEP: Final = 64 << 20
"""Bytes copied between two looks at whether the copy is still wanted."""


async def copy_disk(
    source: Path, target: Path, disk_format: Literal["raw", "qcow2"] = "raw"
) -> None:
    """Write what a disk shows, with what is below it, into the raw file ``target``, 0600.

    With ``raw`` that is a copy of any file, byte for byte. The target appears whole and synced, or
    not at all; one that is there is replaced. Raises DiskError, OSError.
    """
    temporary = target.with_name(target.name + "~")
    with Files() as files:
        disk = await outlast(asyncio.to_thread(files.open, source, disk_format=disk_format))
        fd = await outlast(asyncio.to_thread(_begin, temporary))
        try:
            if disk_format == "qcow2" or not await asyncio.to_thread(_share, disk, fd):
                offset = 0
                while offset < disk.size:
                    copied = asyncio.to_thread(write.copy_raw, fd, disk.view, offset, STEP)
                    offset = await outlast(copied)
            await outlast(asyncio.to_thread(_finish, fd, disk.size, temporary, target))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def _begin(path: Path) -> int:
    path.unlink(missing_ok=True)  # of a crash
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _share(disk: Disk, fd: int) -> bool:
    return reflink(disk.layers[0].fd, fd)


def _finish(fd: int, size: int, temporary: Path, target: Path) -> None:
    os.ftruncate(fd, size)
    os.fsync(fd)
    temporary.rename(target)
    sync_directory(target.parent)
