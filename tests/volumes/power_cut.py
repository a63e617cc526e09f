"""A host that loses its power: the state as it is on disk at any moment, and what comes back.

A program of its own, run as root in a mount namespace of its own::

    loop device over a file that qemu-storage-daemon shows by FUSE; every write and flush is logged
        └── file system with objects and bricks, on which an agent's parts work
    then, for many moments: the disk as the log made it up to there ── mount, journal recovery ──►
        the same parts opened as by a host that has booted again

After the last flush before a moment the disk may have taken any of the writes and not others, which
half of the moments try. Prints what was found at each of them.

``python -m tests.volumes.power_cut ext4|xfs PLACE SEED MOMENTS``
"""

import asyncio
import json
import logging
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes.brick import BrickStore, brick_key
from smallstack.volumes.errors import CorruptObjectError
from tests.objects.sources import MemorySource, digest
from tests.volumes.trees import Objects

MIB = 1 << 20
DISK = {"ext4": 160 * MIB, "xfs": 320 * MIB}
BRICK = 64 * MIB
QUOTA = 1 << 30
IMAGES = 3
SECTOR = 4096
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
"""Of the log, which is dm-log-writes' (block/blklogwrites.c of QEMU): sector, sectors, flags."""
MAGIC = 0x6A736677736872
FLUSH, DISCARD = 1, 4


def make_images(seed: int) -> tuple[list[FileSystem], MemorySource]:
    """Trees that share half of their objects, and a source that has them all."""
    chance = random.Random(seed)
    shared = [chance.randbytes(chance.choice((90, 3000, 20_000))) for _ in range(40)]
    contents: list[bytes] = []
    trees = []
    for _ in range(IMAGES):
        own = [chance.randbytes(chance.choice((100, 5000, 70_000))) for _ in range(40)]
        own.append(chance.randbytes(2 * MIB + 77))
        builder = FileSystemBuilder(mtime_ns=10**18)
        for number, content in enumerate(shared + own):
            index = builder.add(
                mode=0o100644, size=len(content), hash=digest(content), mtime_ns=10**18
            )
            builder.link(0, b"file-%d" % number, index)
        contents += shared + own
        trees.append(builder.build())
    return trees, MemorySource(*contents)


def image_digest(number: int) -> bytes:
    return b"image %d" % number


def file_digest(path: Path) -> bytes:
    hasher = blake3()
    with path.open("rb") as file:
        while data := file.read(MIB):
            hasher.update(data)
    return hasher.digest()


async def work(state: Path, trees: list[FileSystem], source: MemorySource, seed: int) -> None:
    """Fetch, unpack, let go, once for each image: what an agent does."""
    chance = random.Random(seed)
    cache = ObjectCache(state / "objects", QUOTA)
    store = BrickStore(state / "bricks", cache, boot="the first boot")
    source.piece = 200_000
    for number, tree in enumerate(trees):
        async with cache.pin(tree.objects()):
            await cache.ensure(tree.objects(), source)
            brick = await store.get(tree, image_digest(number), BRICK, FirmwareType.BIOS)
        if chance.random() < 0.5:
            await store.synced()
        if number == 1:
            await cache.drop(chance.sample(sorted(trees[0].objects()), 10))
            await store.synced()
            await store.remove(brick)
    await store.synced()
    await store.close()
    cache.close()


async def references(
    place: Path, trees: list[FileSystem], source: MemorySource
) -> dict[str, bytes]:
    """What each brick has to be, by its key."""
    objects = Objects(place / "objects")
    for content in source.contents.values():
        objects.add(content)
    store = BrickStore(place / "bricks", objects)
    found = {}
    for number, tree in enumerate(trees):
        brick = await store.get(tree, image_digest(number), BRICK, FirmwareType.BIOS)
        found[brick.key] = file_digest(brick.path)
    await store.close()
    return found


@dataclass
class Found:
    """What a host that has booted again has."""

    bricks: int = 0
    held: int = 0
    corrupt: int = 0
    fetched: int = 0


async def recover(
    state: Path, trees: list[FileSystem], source: MemorySource, expected: dict[str, bytes]
) -> Found:
    """Open everything again, and make every brick; raises AssertionError for what must not be."""
    found = Found()
    cache = ObjectCache(state / "objects", QUOTA)
    store = BrickStore(state / "bricks", cache, boot="the second boot")
    for brick in store.list():
        assert file_digest(brick.path) == expected[brick.key], f"a torn brick {brick.key}"
        assert brick.size == BRICK
        found.bricks += 1
    assert len(list((state / "bricks").iterdir())) == found.bricks, "something is left behind"
    await cache.sweep()
    for hash_, content in source.contents.items():
        if hash_ in cache:
            found.held += 1
            assert cache.blake3(hash_) == blake3(content).digest(), "the index lies"
            try:
                found.corrupt += b"".join(cache.place(hash_).read()) != content
            except OSError:
                found.corrupt += 1
    for number, tree in enumerate(trees):
        async with cache.pin(tree.objects()):
            while True:
                found.fetched += (await cache.ensure(tree.objects(), source)).fetched
                try:
                    brick = await store.get(tree, image_digest(number), BRICK, FirmwareType.BIOS)
                except CorruptObjectError as error:
                    assert bytes.fromhex(error.hash) not in cache
                    continue
                break
        assert brick.key == brick_key(image_digest(number), BRICK, FirmwareType.BIOS)
        assert file_digest(brick.path) == expected[brick.key], "another brick from the same inputs"
    await store.close()
    cache.close()
    return found


# The disk.


@contextmanager
def logged(place: Path, disk: Path, log: Path) -> Iterator[Path]:
    """A file that is ``disk``, and every write to it goes to ``log`` as well."""
    shown = place / "shown"
    pid = place / "pid"
    for file in (log, shown):
        file.touch()
    subprocess.run(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=disk,filename={disk}"),
            *("--blockdev", f"driver=file,node-name=log,filename={log}"),
            "--blockdev",
            f"driver=blklogwrites,node-name=both,file=disk,log=log,log-sector-size={SECTOR}",
            *("--export", f"type=fuse,id=shown,node-name=both,mountpoint={shown},writable=on"),
            *("--daemonize", "--pidfile", str(pid)),
        ],
        check=True,
    )
    daemon = os.pidfd_open(int(pid.read_text()))
    try:
        yield shown
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        select.select([daemon], [], [])
        os.close(daemon)


def entries(log: bytes) -> list[tuple[int, int, int, int]]:
    """Flags, offset, length and where the data is, of each entry."""
    magic, version, count, sector = SUPER.unpack_from(log)
    assert (magic, version, sector) == (MAGIC, 1, SECTOR)
    found, at = [], SECTOR
    for _ in range(count):
        first, sectors, flags, _ = ENTRY.unpack_from(log, at)
        at += SECTOR
        found.append((flags, first * SECTOR, sectors * SECTOR, at))
        if not flags & DISCARD:
            at += sectors * SECTOR
    return found


def replay(
    disk: Path, log: bytes, writes: list[tuple[int, int, int, int]], chance: random.Random | None
) -> None:
    """Do the writes; with ``chance`` only some of those that no flush comes after."""
    last = max((n for n, entry in enumerate(writes) if entry[0] & FLUSH), default=-1)
    with disk.open("r+b") as file:
        for number, (flags, offset, length, at) in enumerate(writes):
            if flags & DISCARD or not length:
                continue
            if chance is not None and number > last and chance.random() < 0.5:
                continue
            file.seek(offset)
            file.write(log[at : at + length])


@contextmanager
def mounted(disk: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,nodiscard", disk, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def main() -> None:
    kind, place, seed, moments = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    logging.disable(logging.ERROR)
    trees, source = make_images(seed)
    expected = asyncio.run(references(place / "reference", trees, source))
    base, disk, log_file = place / "base", place / "disk", place / "log"
    with base.open("wb") as file:
        file.truncate(DISK[kind])
    subprocess.run([f"mkfs.{kind}", "-q", base], check=True)
    shutil.copyfile(base, disk)
    with logged(place, disk, log_file) as shown, mounted(shown, place / "at") as state:
        asyncio.run(work(state, trees, source, seed))
    log = log_file.read_bytes()
    writes = entries(log)
    assert len(writes) > 50, f"only {len(writes)} writes were logged"
    chance = random.Random(seed)
    at = [*sorted(chance.sample(range(len(writes)), moments)), len(writes)]
    found = Found()
    for number, moment in enumerate(at):
        subprocess.run(["cp", "--sparse=always", base, disk], check=True)
        replay(disk, log, writes[:moment], chance if number % 2 else None)
        with mounted(disk, place / "at") as state:
            found = asyncio.run(recover(state, trees, source, expected))
        facts = {"moment": moment, "of": len(writes), **vars(found)}
        print(json.dumps(facts), flush=True)
    assert found.bricks == IMAGES - 1, (
        "after an orderly end all bricks are found but what was removed"
    )


if __name__ == "__main__":
    main()
