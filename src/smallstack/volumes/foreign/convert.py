"""Makes a raw disk of an image in another format.

qcow2 is read by our own code, whole and without backing files. VMDK and VDI go through qemu-img,
which nobody has made safe against hostile images: it is confined (see confined.py), and is told the
formats of its two files, and that there is nothing below.
"""

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from smallstack.outlast import outlast
from smallstack.volumes.confined import STDIN, STDOUT, MissingProgram, User, run_confined
from smallstack.volumes.errors import ConverterMissingError, DiskImageError
from smallstack.volumes.foreign.formats import SECTOR, DiskFormat
from smallstack.volumes.foreign.sparse import SparseFile
from smallstack.volumes.qcow2 import write
from smallstack.volumes.qcow2.chain import Disk, Files
from smallstack.volumes.qcow2.errors import DiskError

STEP: Final = 64 << 20
"""Bytes of a disk between two looks at what is left of the space."""
Grow = Callable[[int], Awaitable[None]]
"""Called with the bytes that the file is going to take; raises when there is no room for them."""


async def flatten(source: Path, target: SparseFile, name: str, limit: int, grow: Grow) -> None:
    """Write what a qcow2 image shows into ``target``, which is empty. ``name`` is for messages.

    Raises DiskImageError, OSError, and what ``grow`` raises.
    """
    with Files() as files:
        try:
            disk = await outlast(asyncio.to_thread(_open_qcow2, files, source))
            size = disk.size
            if size > limit or size == 0:
                detail = f"its disk has {size} bytes: 1 to {limit} are taken (--max-image-size)"
                raise DiskImageError(name=name, detail=detail)
            await outlast(asyncio.to_thread(target.extend, -(-size // SECTOR) * SECTOR))
            offset = 0
            while offset < size:
                await grow(os.fstat(target.fd).st_blocks * 512 + STEP)
                offset = await outlast(asyncio.to_thread(_copy, disk, target, offset))
        except DiskError as error:
            detail = str(error).replace(f"{source}: ", "").replace(str(source), "it")
            number = error.fields.get("errno")
            raise DiskImageError(name=name, detail=detail, errno=number) from None


def _open_qcow2(files: Files, source: Path) -> Disk:
    return files.open(source, disk_format="qcow2", backing=False)


def _copy(disk: Disk, target: SparseFile, offset: int) -> int:
    """Copy the next STEP bytes; where it goes on."""
    image, length = disk.image, os.fstat(disk.layers[0].fd).st_size
    assert image is not None
    for _, size, kind, _, host in disk.view.map(offset, min(STEP, disk.size - offset)):
        # The reader, as QEMU, shows zeros there. The last cluster of a file may be short.
        last = (host + size - 1) // image.cluster_size * image.cluster_size
        if kind == "data" and last >= length:
            raise DiskError(path=disk.path, detail=f"it was cut off after {length} bytes")
    return write.copy_raw(target.fd, disk.view, offset, STEP)


async def convert(
    source: Path, format_: DiskFormat, target: SparseFile, size: int, user: User, name: str
) -> None:
    """Write the disk of a VMDK or VDI, ``size`` bytes, into ``target``, which is empty.

    Both files are the ``user``'s meanwhile. Raises DiskImageError, ConverterMissingError, OSError.
    """
    await outlast(asyncio.to_thread(target.extend, size))
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if user is not None:
            # By their names in /proc it opens them again, which asks for the file's permission.
            os.fchown(reading, *user)
            os.fchown(target.fd, *user)
        node: dict[str, object] = {
            "driver": format_.value,
            "file": {"driver": "file", "filename": STDIN, "locking": "off"},
        }
        if format_ is DiskFormat.VMDK:
            node["backing"] = None
            # It reads on where grains lie beyond the end of the file.
            await _run(["check", "-q", _image(node)], reading, None, size, user, name)
        command = ["convert", "-n", "--target-is-zero", "-S", "4k", "-O", "raw", _image(node)]
        await _run([*command, STDOUT], reading, target.fd, size, user, name)
        if user is not None:
            os.fchown(target.fd, os.geteuid(), os.getegid())
    finally:
        os.close(reading)


def _image(node: dict[str, object]) -> str:
    return "json:" + json.dumps(node)


async def _run(
    arguments: list[str], reading: int, writing: int | None, size: int, user: User, name: str
) -> None:
    try:
        status, said = await run_confined("qemu-img", arguments, reading, writing, size, user)
    except MissingProgram as missing:
        raise ConverterMissingError(name=name, program=str(missing)) from None
    if b"No space left on device" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if status:
        raise DiskImageError(name=name, detail=_reason(said, status, arguments[0]))


def _reason(said: bytes, status: int, work: str) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    if status < 0:
        return f"qemu-img {work} was ended by signal {-status}"
    # The first line says what is wrong, the last one only that something is.
    text = next(iter(lines), f"status {status}")
    start = text.find("json:")
    if start >= 0:
        text = text[:start] + "it" + text[text.rfind("}") + 1 :].lstrip("'")
    return f"{text.removeprefix('qemu-img: ')[:200]} (qemu-img {work})"
