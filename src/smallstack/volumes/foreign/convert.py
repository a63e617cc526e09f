"""Makes a raw disk of an image in another format.

qcow2 is read by our own code, whole and without backing files. VMDK and VDI go through qemu-img,
which nobody has made safe against hostile images: it runs as an unprivileged user without
capabilities and without a network, under limits, and sees two open files; it is told their formats,
and that there is nothing below. It dies with the agent.
"""

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from smallstack.outlast import outlast
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
User = tuple[int, int] | None
"""Uid and gid of the converter; None where the agent is unprivileged itself."""

_ADDRESS_SPACE: Final = 2 << 30
_CPU_SECONDS: Final = 120
_CPU_BYTES: Final = 8 << 20
"""A second of processor time more for each of these bytes of the disk."""
_MAX_SAID: Final = 64 << 10
_SOURCE, _TARGET = 0, 1
"""Descriptors of the converter: what it reads, and what it writes or says nothing to."""


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
            "file": {"driver": "file", "filename": f"/proc/self/fd/{_SOURCE}", "locking": "off"},
        }
        if format_ is DiskFormat.VMDK:
            node["backing"] = None
            # It reads on where grains lie beyond the end of the file.
            await _run(["check", "-q", _image(node)], reading, None, size, user, name)
        command = ["convert", "-n", "--target-is-zero", "-S", "4k", "-O", "raw", _image(node)]
        await _run([*command, f"/proc/self/fd/{_TARGET}"], reading, target.fd, size, user, name)
        if user is not None:
            os.fchown(target.fd, os.geteuid(), os.getegid())
    finally:
        os.close(reading)


def _image(node: dict[str, object]) -> str:
    return "json:" + json.dumps(node)


async def _run(
    arguments: list[str], reading: int, writing: int | None, size: int, user: User, name: str
) -> None:
    programs = {}
    for program in ("qemu-img", "prlimit", "unshare", "setpriv"):
        found = shutil.which(program)
        if found is None:
            raise ConverterMissingError(name=name, program=program)
        programs[program] = found
    command = [
        programs["prlimit"],
        *("--core=0", "--nofile=64", "--nproc=512", f"--as={_ADDRESS_SPACE}"),
        *(f"--fsize={size}", f"--cpu={_CPU_SECONDS + size // _CPU_BYTES}"),
    ]
    if user is not None:
        command += [programs["unshare"], "--net", "--ipc", "--uts"]
        command += [programs["setpriv"], f"--reuid={user[0]}", f"--regid={user[1]}"]
        command += ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    else:
        command += [programs["setpriv"]]
    command += ["--no-new-privs", "--pdeathsig=KILL", programs["qemu-img"], *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=reading,
        stdout=writing if writing is not None else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"},
        cwd="/",
        start_new_session=True,
    )
    try:
        said = b""
        assert process.stderr is not None
        while data := await process.stderr.read(_MAX_SAID):
            said = (said + data)[:_MAX_SAID]
        status = await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await outlast(process.wait())
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
