"""Bricks: written once, shared by concurrent callers, never half there, whatever goes wrong."""

import asyncio
import errno
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes import brick as bricks
from smallstack.volumes.brick import BrickStore, brick_key
from smallstack.volumes.errors import (
    CorruptObjectError,
    LayerError,
    ObjectUnreadableError,
    RootSizeError,
    RootTooSmallError,
    VolumeWriteError,
)
from smallstack.volumes.layer import Way, create_layer
from smallstack.volumes.partition import PARTITION_OFFSET
from tests.objects.sources import MemorySource
from tests.volumes.conftest import MIB
from tests.volumes.disks import e2fsck, run
from tests.volumes.trees import Objects

BIOS = FirmwareType.BIOS
SIZE = 64 * MIB
IMAGE = b"digest of an image"


def make_tree(objects: Objects, megabytes: int = 3) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=10**18)
    directory = builder.add(mode=0o40755, mtime_ns=10**18)
    builder.link(0, b"etc", directory)
    for number in range(megabytes * 4):
        content = b"%d" % number * (MIB // 4 // len(b"%d" % number))
        index = builder.add(
            mode=0o100644, size=len(content), hash=objects.add(content), mtime_ns=10**18
        )
        builder.link(directory, b"file-%d" % number, index)
    return builder.build()


@pytest.fixture
def fs(objects: Objects) -> FileSystem:
    return make_tree(objects)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "bricks"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_made_once_then_found(fs: FileSystem, objects: Objects, directory: Path) -> None:
    store = BrickStore(directory, objects)
    told: list[str] = []
    brick = await store.get(fs, IMAGE, SIZE, BIOS, told.append)
    assert told == ["writing root volume"]
    assert brick.path.stat().st_size == brick.size == SIZE
    assert brick.path.stat().st_mode & 0o7777 == 0o400
    assert brick.path.parent.stat().st_mode & 0o7777 == 0o700
    e2fsck(brick.path)
    await store.synced()
    assert names(directory) == [brick.key]
    before = brick.path.stat()
    assert await store.get(fs, IMAGE, SIZE, FirmwareType.DEFAULT, told.append) == brick
    assert await BrickStore(directory, objects).get(fs, IMAGE, SIZE, BIOS) == brick
    assert brick.path.stat().st_mtime_ns == before.st_mtime_ns
    assert told == ["writing root volume"]
    assert store.find(IMAGE, SIZE, BIOS) == brick
    assert store.find(b"another", SIZE, BIOS) is None
    assert store.list() == [brick]
    await store.remove(brick)
    assert store.list() == []


def test_keys_differ_by_image_size_and_firmware() -> None:
    keys = {
        brick_key(image, size, firmware)
        for image in (b"a", b"b")
        for size in (SIZE, 2 * SIZE)
        for firmware in (BIOS, FirmwareType.UEFI)
    }
    assert len(keys) == 8
    assert brick_key(b"a", SIZE, BIOS) == brick_key(b"a", SIZE, FirmwareType.DEFAULT)


async def test_concurrent_callers_share_one_build(
    fs: FileSystem, objects: Objects, directory: Path, monkeypatch: MonkeyPatch
) -> None:
    built: list[Path] = []
    write = bricks.write_disk

    def counted(path: Path, *args: object) -> object:
        built.append(path)
        return write(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(bricks, "write_disk", counted)
    store = BrickStore(directory, objects)
    told: list[str] = []
    calls = [store.get(fs, IMAGE, SIZE, BIOS, told.append) for _ in range(20)]
    others = [store.get(fs, IMAGE, 2 * SIZE, BIOS) for _ in range(3)]
    found = await asyncio.gather(*calls, *others)
    assert len({brick.path for brick in found[:20]}) == 1
    assert len(built) == 2
    assert told == ["writing root volume"] + ["waiting for root volume"] * 19
    await store.close()


async def test_a_cancelled_caller_leaves_the_others_their_build(
    fs: FileSystem, objects: Objects, directory: Path
) -> None:
    store = BrickStore(directory, objects)
    first = asyncio.create_task(store.get(fs, IMAGE, SIZE, BIOS))
    second = asyncio.create_task(store.get(fs, IMAGE, SIZE, BIOS))
    await asyncio.sleep(0)
    first.cancel()
    brick = await second
    assert brick.path.exists()
    with pytest.raises(asyncio.CancelledError):
        await first
    await store.close()


async def test_a_corrupt_object_is_named_and_dropped(
    fs: FileSystem, objects: Objects, directory: Path
) -> None:
    index = fs.lookup(b"/etc/file-7")
    assert index is not None
    digest = fs.inode(index).hash
    path = objects.path(digest)
    good = path.read_bytes()
    store = BrickStore(directory, objects)
    for bad in (good[:-1] + b"X", b"Y" + good[1:], good[:-1], good + b"more", b""):
        path.write_bytes(bad)
        if bad == good + b"more":  # what belongs to the file is right
            continue
        with pytest.raises(CorruptObjectError) as caught:
            await store.get(fs, IMAGE, SIZE, BIOS)
        assert caught.value.hash == digest.hex()
        assert caught.value.path == "/etc/file-7"
        assert objects.dropped.pop() == digest
        assert not path.exists()
        assert names(directory) == []
    with pytest.raises(CorruptObjectError, match="its file is gone"):
        await store.get(fs, IMAGE, SIZE, BIOS)
    path.write_bytes(good)
    e2fsck((await store.get(fs, IMAGE, SIZE, BIOS)).path)
    await store.close()


async def test_what_has_just_come_is_checked_by_its_quick_sum(
    directory: Path, tmp_path: Path
) -> None:
    """Small and large objects, in a pack and not, one with a hole and all of odd sizes."""
    random = os.urandom(1 << 20)
    contents = [b"x" * 5, random[:33], random[:70_001], random[7:600_000]]
    contents += [random + b"tail", random + bytes(1 << 20) + random[1:], random + bytes(1 << 20)]
    source = MemorySource(*contents)
    builder = FileSystemBuilder()
    for number, content in enumerate(contents):
        hash_ = hashlib.sha512(content).digest()
        index = builder.add(mode=0o100644, size=len(content), hash=hash_)
        builder.link(0, b"%d" % number, index)
    fs = builder.build()
    cache = ObjectCache(tmp_path / "cache", 1 << 26)
    store = BrickStore(directory, cache)
    async with cache.pin(fs.objects()):
        await cache.ensure(fs.objects(), source)
        for number, content in enumerate(contents):
            place = cache.place(hashlib.sha512(content).digest())
            assert place.packed == (len(content) <= 1 << 20)
            place.path.chmod(0o644)
            with place.path.open("r+b") as file:
                file.seek(place.offset + place.size // 2)
                file.write(b"?!")
            with pytest.raises(CorruptObjectError) as caught:
                await store.get(fs, IMAGE, SIZE, BIOS)
            assert caught.value.path == f"/{number}"
            assert (await cache.ensure(fs.objects(), source)).fetched == 1
        assert {len(cache.facts(hash_)[0]) for hash_ in fs.objects()} == {16}
        brick = await store.get(fs, IMAGE, SIZE, BIOS)
    e2fsck(brick.path)
    for number, content in enumerate(contents):
        command = f"dump /{number} {tmp_path / 'out'}"
        run("debugfs", "-R", command, f"{brick.path}?offset={PARTITION_OFFSET}")
        assert (tmp_path / "out").read_bytes() == content
    await store.close()
    cache.close()


async def test_small_objects_are_checked_too(objects: Objects, directory: Path) -> None:
    """Those that are hashed many at a time: the right one is named."""
    builder = FileSystemBuilder()
    contents = [b"object %d " % n * (n % 50 + 1) for n in range(3000)]
    for number, content in enumerate(contents):
        index = builder.add(mode=0o100644, size=len(content), hash=objects.add(content))
        builder.link(0, b"%d" % number, index)
    fs = builder.build()
    store = BrickStore(directory, objects)
    for number in (0, 255, 256, 1023, 1024, 1500, 2999):
        index = fs.lookup(b"/%d" % number) or 0
        path = objects.path(fs.inode(index).hash)
        path.write_bytes(b"X" + contents[number][1:])
        with pytest.raises(CorruptObjectError) as caught:
            await store.get(fs, IMAGE, SIZE, BIOS)
        assert caught.value.path == f"/{number}"
        path.write_bytes(contents[number])
    await store.get(fs, IMAGE, SIZE, BIOS)
    await store.close()


async def test_what_the_cache_raises_comes_through(
    fs: FileSystem, objects: Objects, directory: Path
) -> None:
    objects.digests.clear()
    store = BrickStore(directory, objects)
    with pytest.raises(KeyError):
        await store.get(fs, IMAGE, SIZE, BIOS)
    assert names(directory) == []


async def test_an_object_that_is_a_directory(
    fs: FileSystem, objects: Objects, directory: Path
) -> None:
    path = objects.path(fs.inode(2).hash)
    path.unlink()
    path.mkdir()
    with pytest.raises(ObjectUnreadableError, match="Is a directory"):
        await BrickStore(directory, objects).get(fs, IMAGE, SIZE, BIOS)


async def test_refusals(fs: FileSystem, objects: Objects, directory: Path) -> None:
    store = BrickStore(directory, objects)
    with pytest.raises(RootSizeError):
        await store.get(fs, IMAGE, SIZE, FirmwareType.UEFI)
    with pytest.raises(RootTooSmallError):
        await store.get(make_tree(objects, 80), IMAGE, SIZE, BIOS)
    assert names(directory) == []


def test_a_directory_that_cannot_be(tmp_path: Path, objects: Objects) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeWriteError, match="file/bricks"):
        BrickStore(tmp_path / "file/bricks", objects)


async def test_what_a_killed_agent_left_is_cleaned_up(
    fs: FileSystem, objects: Objects, directory: Path
) -> None:
    store = BrickStore(directory, objects)
    brick = await store.get(fs, IMAGE, SIZE, BIOS)
    await store.synced()
    marker = directory / (brick.key + ".pending")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (directory / (brick.key + ".~123")).write_bytes(b"half")
    # the same boot: the kernel still has it all, it is synced again
    marker.write_text(boot)
    store = BrickStore(directory, objects)
    assert names(directory) == [brick.key, marker.name]
    assert await store.get(fs, IMAGE, SIZE, BIOS) == brick
    await store.synced()
    assert names(directory) == [brick.key]
    # another boot: made anew, the same bytes
    before = brick.path.read_bytes()
    for text in ("another boot", ""):
        marker.write_text(text)
        store = BrickStore(directory, objects)
        assert names(directory) == []
        brick = await store.get(fs, IMAGE, SIZE, BIOS)
        await store.synced()
        assert brick.path.read_bytes() == before
    # a mark without its brick
    marker.write_text(boot)
    brick.path.unlink()
    BrickStore(directory, objects)
    assert names(directory) == []


async def test_a_failing_sync_keeps_the_mark(
    fs: FileSystem, objects: Objects, directory: Path, monkeypatch: MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    store = BrickStore(directory, objects)
    brick = await store.get(fs, IMAGE, SIZE, BIOS)
    await store.synced()
    assert names(directory) == [brick.key, brick.key + ".pending"]


@pytest.mark.root
@pytest.mark.root
async def test_durable_means_after_a_power_cut(objects: Objects, tmp_path: Path) -> None:
    """What is on the disk when `durable` returns is copied: the next boot has the brick."""
    image, cut, at = tmp_path / "disk.img", tmp_path / "cut.img", tmp_path / "at"
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", image)
    at.mkdir()
    run("mount", "-o", "loop", image, at)
    try:
        store = BrickStore(at / "bricks", objects)
        temporary = store.directory / "new.~1"
        temporary.write_bytes(b"a disk" * 100_000)
        brick = await store.adopt(temporary, "imported-1")
        await store.durable(brick)
        run("cp", image, cut)
    finally:
        run("umount", at)
    run("mount", "-o", "loop", cut, at)
    try:
        found = BrickStore(at / "bricks", objects, boot="the next boot").list()
        assert [one.key for one in found] == ["imported-1"]
        assert found[0].path.read_bytes() == b"a disk" * 100_000
    finally:
        run("umount", at)


async def test_no_space_at_every_write(objects: Objects, small_disk: Path) -> None:
    """A little more space each time, until brick and layer succeed; nothing is left before."""
    fs = make_tree(objects, 16)
    directory = small_disk / "bricks"
    store = BrickStore(directory, objects)
    balloon = small_disk / "balloon"
    failures = {"brick": 0, "layer": 0}
    layer = small_disk / "layer"
    free = 0
    while True:
        balloon.unlink(missing_ok=True)
        space = os.statvfs(small_disk)
        with balloon.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - free - 65536)
        try:
            found = await store.get(fs, IMAGE, SIZE, BIOS)
        except VolumeWriteError as error:
            assert error.errno == errno.ENOSPC
            assert names(directory) == []
            failures["brick"] += 1
            free += MIB // 2
            continue
        await store.synced()
        if failures["layer"] == 0:
            free = 0
        try:
            create_layer(found, layer, label="x", files={"/large": b"x" * 3 * MIB})
            break
        except LayerError as error:
            assert error.errno == errno.ENOSPC
            assert not layer.exists()
            failures["layer"] += 1
            free += MIB // 4
    assert failures["brick"] >= 20
    assert failures["layer"] >= 3
    print(f"no space: {failures['brick']} times in a brick, {failures['layer']} in a layer")
    e2fsck(found.path)
    await store.close()


KILL_EVENTS = {"open", "os.truncate", "os.rename", "os.remove", "os.mkdir", "os.scandir"}


def killed_at(point: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a child that gets SIGKILL at its point-th event; False: it had fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, _: tuple[object, ...]) -> None:
            nonlocal seen
            if event in KILL_EVENTS:
                seen += 1
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in {0, signal.SIGKILL}
    return status == signal.SIGKILL


def test_a_kill_at_every_point(fs: FileSystem, objects: Objects, directory: Path) -> None:
    """kill -9 before each file operation and inside the writing: no partial brick is ever used."""
    lookup = objects.facts

    def facts(digest: bytes) -> tuple[bytes, int, int]:
        sys.audit("os.truncate", "inside the writer")
        return lookup(digest)

    objects.facts = facts  # type: ignore[method-assign]

    async def build() -> None:
        store = BrickStore(directory, objects)
        brick = await store.get(fs, IMAGE, SIZE, BIOS)
        await store.synced()
        create_layer(brick, directory.with_name("layer"), label="x", way=Way.COPY)
        await store.close()

    reference: bytes | None = None
    points = 0
    while killed_at(points + 1, lambda: asyncio.run(build())):
        points += 1
        if directory.exists():
            store = BrickStore(directory, objects)
            assert not [name for name in names(directory) if ".~" in name]
            for brick in store.list():
                content = brick.path.read_bytes()
                reference = reference or content
                assert content == reference
                asyncio.run(store.remove(brick))
        directory.with_name("layer").unlink(missing_ok=True)
    assert reference is not None
    assert points >= 20
    print(f"{points} kill points")
