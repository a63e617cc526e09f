"""A Debian root with its boot loader, from nothing and from less, ours beside what others do.

In turns, on one machine, with the image server of the sandbox and an HTTP server on loopback:

=========  ======================================================================================
cold       ours: tree and objects from the image server (the objects over its Unix socket, in clear
           text, as between an agent and a server on one machine), SHA-512 of each, brick with
           boot loader, layer. Theirs: ``curl`` of a tar archive, ``sha512sum``, loop mount,
           ``tar -x``, ``grub-install``, umount
cached     ours: the objects are in the cache, checked by BLAKE3 as they go into the brick. Theirs:
           the files lie in a directory: loop mount, ``cp -a``, ``grub-install``, umount
present    ours alone: the brick is there
=========  ======================================================================================

Ours is the code that the agent runs in a create, `Images` and `Roots`, in this process; a phase's
times are what a create's timeline shows. GRUB's images were made before, as on every host once;
everything is in the page cache. Their umount writes to the disk, our brick is synced after the
clock has stopped: ``cached_ratio`` and ``cold_ratio`` leave their umount out as well,
``…_synced_ratio`` has their umount and our fsync in it. What a turn of ours leaves is removed at
the end of all: ext4 is slow to make files where many were removed within the last minutes, since
it does not use their inodes again so soon. It leaves the page cache before the next turn, as their
disk does when it is removed: else ours alone would get memory that nobody has touched yet, which
in a virtual machine costs several times as much as other memory does (see `bench.results.warm`).
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from bench.boot import FREE_BYTES, Archive, Disk, loop_disk
from bench.results import BenchError, median, spread, warm
from smallstack.control.sandbox import IMAGE_SERVER, Sandbox
from smallstack.daemon.run import calm_collector
from smallstack.hypervisor.images import Images, KnownImage
from smallstack.hypervisor.roots import BRICKS, Roots, RootWanted, size_of
from smallstack.identity.credentials import ClientCredentials
from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import FirmwareType
from smallstack.settings import cache_directory
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.partition import scheme_of

WAYS: Final = ("cold", "cached", "present")
_CACHE_BYTES: Final = 16 << 30
_FIRMWARE: Final = FirmwareType.BIOS
_MOST_DIRTY: Final = 3 << 29
"""Bytes that wait in memory to be written, without the system beginning to write them."""
_TAR: Final = ["tar", "--create", "--numeric-owner", "--xattrs", "--xattrs-include=*"]


class Firsts:
    """The samples of all turns, in seconds by name: a way, or ``way: phase``."""

    def __init__(self, disk: Disk, data_bytes: int) -> None:
        self.disk = disk
        self.data_bytes = data_bytes

    @property
    def samples(self) -> dict[str, list[float]]:
        """Seconds."""
        return self.disk.samples

    def headline(self) -> dict[str, Any]:
        """Ratios are theirs / ours."""
        mid = {name: median(values, 6) for name, values in self.samples.items()}
        return {
            "data_bytes": self.data_bytes,
            "cached_ms": round(mid["cached"] * 1000, 1),
            **self._ratios("cached", "loop", mid),
            "cold_ms": round(mid["cold"] * 1000, 1),
            **self._ratios("cold", "loop cold", mid),
            "present_ms": round(mid["present"] * 1000, 2),
            "fsync_ms": round(mid["fsync, cached"] * 1000, 1),
        }

    def _ratios(self, way: str, theirs: str, mid: dict[str, float]) -> dict[str, float]:
        unsynced = (mid[theirs] - mid[f"{theirs}: umount"]) / mid[way]
        synced = mid[theirs] / (mid[way] + mid[f"fsync, {way}"])
        return {f"{way}_ratio": round(unsynced, 2), f"{way}_synced_ratio": round(synced, 2)}

    def table(self) -> str:
        """Every figure, a line each."""
        lines = [f"  a Debian root and its boot loader, {self.data_bytes >> 20} MiB of content"]
        lines += [f"    {name:28} {spread(values)}" for name, values in self.samples.items()]
        return "\n".join(lines)

    def bars(self) -> dict[str, dict[str, float]]:
        """Medians of the phases of each way, for a picture."""
        found: dict[str, dict[str, float]] = {}
        for name, values in self.samples.items():
            way, _, phase = name.partition(": ")
            if phase:
                whose = way if way.startswith("loop") else f"ours, {way}"
                found.setdefault(whose, {})[phase] = median(values, 6)
        return found


async def measure(sandbox: Sandbox, image: str, root: Path, turns: int) -> Firsts:
    """Measure; ``image`` is ``root`` on the sandbox's image server. Raises BenchError."""
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="bench-first-") as name:
        place = Path(name)
        print("archiving the root for the other side", file=sys.stderr, flush=True)
        digest = await asyncio.to_thread(_archive, root, place / "served")
        async with _http_server(place / "served") as url:
            return await _measure(
                sandbox, image, root, place, turns, Archive(f"{url}/root.tar", digest)
            )


async def _measure(
    sandbox: Sandbox, image: str, root: Path, place: Path, turns: int, archive: Archive
) -> Firsts:
    ours = _Ours(place, ClientCredentials.load(sandbox.certificates), image)
    known = await ours.begin()
    size = size_of(known, FREE_BYTES, 24, _FIRMWARE)
    await asyncio.to_thread(ours.loaders.get, scheme_of(size, _FIRMWARE))
    calm_collector()  # as the agent does
    firsts = Firsts(Disk("bios", _FIRMWARE, size), known.tree.total_data_bytes)
    for turn in range(-1, turns):  # the first turn fills the page cache
        for whose in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            for way in WAYS:
                if whose == "theirs" and way == "present":
                    continue
                if whose == "ours" and way == "cold":
                    await ours.begin()
                # Cold: an archive, a disk and the files in it, or else objects and a disk.
                touched = firsts.data_bytes * (3 if way == "cold" else 1)
                await asyncio.to_thread(_settle, place, touched)
                if whose == "ours":
                    await ours.make(way, firsts.disk)
                else:
                    await asyncio.to_thread(
                        loop_disk, firsts.disk, root, place, archive if way == "cold" else None
                    )
        if turn < 0:
            firsts.samples.clear()
        else:
            latest = {n: s[-1] * 1000 for n, s in firsts.samples.items() if ": " not in n}
            shown = "  ".join(f"{name} {ms:.1f}" for name, ms in latest.items())
            print(f"debian  {shown} ms", flush=True)
    await ours.end()
    return firsts


def _settle(place: Path, size: int) -> None:
    subprocess.run(["sync", "-f", place], check=True)
    warm(size)
    _warm_page_cache(place / "warm", min(size, _MOST_DIRTY))


def _warm_page_cache(path: Path, size: int) -> None:
    """As `warm`, for what files take: large pieces, of which single pages are no part."""
    piece = bytes(256 << 10)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
    path.unlink()  # before the system begins to write it to the disk


class _Ours:
    """The storage side of an agent of its own, begun anew for each cold way."""

    def __init__(self, place: Path, credentials: ClientCredentials, image: str) -> None:
        self.loaders = BootLoaders(place / "loaders")
        self._places = place
        self._place = place
        self._number = 0
        self._credentials = credentials
        self._image = image
        self._cache: ObjectCache | None = None

    async def begin(self) -> KnownImage:
        """Empty-handed; the image's tree, which is forgotten again."""
        await self.end()
        if self._number:
            await asyncio.to_thread(_leave_page_cache, self._place)
        self._number += 1
        self._place = self._places / f"agent-{self._number}"
        self._cache = ObjectCache(self._place / "objects", _CACHE_BYTES)
        self._images = Images(IMAGE_SERVER, self._credentials, self._cache)
        self._roots = Roots([self._place], self._cache, self._images, self.loaders)
        images = Images(IMAGE_SERVER, self._credentials, self._cache)
        known = await images.find(self._image)
        await images.close()
        return known

    async def end(self) -> None:
        """Close everything."""
        if self._cache is not None:
            await self._roots.close()
            await self._images.close()
            self._cache.close()
            self._cache = None

    async def make(self, way: str, disk: Disk) -> None:
        """Make the root in that way, and keep its times; the ways go in the order of `WAYS`, the
        first one behind `begin`."""
        if way == "cached":
            await self._forget_brick()
        vm = self._place / "vm"
        vm.mkdir()
        timeline = Timeline()
        started = time.perf_counter()
        with timeline.phase("get image"):
            image = await self._images.find(self._image)
        await self._roots.make(
            RootWanted(
                image=image,
                size=disk.size,
                path=vm / "root",
                label="rootfs@c6336402",
                firmware=disk.firmware,
                directories=(),
                files={},
                options=lambda _: "root=LABEL=rootfs@c6336402 ro",
            ),
            timeline,
        )
        ended = time.perf_counter()
        disk.add(way, ended - started)
        for phase in timeline.phases:
            disk.add(f"{way}: {phase.name}", phase.duration_ns / 1e9)
        await self._roots.close()  # waits until the brick is synced
        if way != "present":
            disk.add(f"fsync, {way}", time.perf_counter() - ended)
        await asyncio.to_thread(shutil.rmtree, vm)

    async def _forget_brick(self) -> None:
        """Remove the brick that the cold way has made."""
        (unused,) = self._roots.unused_bricks([])[self._place]
        await self._roots.remove_brick(self._place, unused, [])
        left = list((self._place / BRICKS).iterdir())
        if left:
            raise BenchError(detail=f"a brick was not removed: {left}")


def _leave_page_cache(directory: Path) -> None:
    """Drop from memory what lies in the files there, all of it on disk."""
    subprocess.run(["sync", "-f", directory], check=True)
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _archive(root: Path, served: Path) -> str:
    """Make the archive that is served; its SHA-512 in hex."""
    served.mkdir()
    tar = served / "root.tar"
    subprocess.run([*_TAR, "--file", str(tar), "--directory", str(root), "."], check=True)
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


@contextlib.asynccontextmanager
async def _http_server(directory: Path) -> AsyncIterator[str]:
    """busybox serves a directory by sendfile; the base of its addresses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        "busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", os.fspath(directory)
    )
    try:
        await _listening(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _listening(port: int) -> None:
    """Wait until somebody listens there; curl tries until then. Raises BenchError."""
    asked = ["curl", "-s", "-o", "/dev/null", "--retry", "30", "--retry-connrefused"]
    process = await asyncio.create_subprocess_exec(
        *asked, "--retry-delay", "1", f"http://127.0.0.1:{port}/"
    )
    if await process.wait() != 0:
        raise BenchError(detail="busybox's HTTP server does not answer")
