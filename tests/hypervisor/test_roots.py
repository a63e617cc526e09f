"""Bricks under the layers of creates that are not over yet; roots with a boot loader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.hypervisor.agent import Agent, Parts
from smallstack.hypervisor.errors import ImageTreeError
from smallstack.hypervisor.host import Space
from smallstack.hypervisor.images import Images
from smallstack.hypervisor.ledger import Ledger
from smallstack.hypervisor.roots import BRICKS, Roots, RootWanted, label_of
from smallstack.network.book import AddressBook
from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import FirmwareType
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.brick import BrickStore
from smallstack.volumes.errors import BootLoaderMissingError
from smallstack.volumes.grub_config import GRUB_CONFIG
from tests.hypervisor.image_server import ScriptedImageServer
from tests.hypervisor.test_imports import SmallHost
from tests.volumes.disks import run

MIB = 1 << 20

SIZE = 64 << 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedImageServer]:
    tree = tmp_path / "tree"
    for name in ("boot", "etc", "var/lib"):
        (tree / name).mkdir(parents=True)
    (tree / "boot" / "vmlinuz-1").write_bytes(b"kernel" * 1000)
    scripted = ScriptedImageServer()
    scripted.add("app", tree)
    async with scripted.serving():
        yield scripted


async def test_a_brick_that_is_about_to_be_used_stays(
    tmp_path: Path, server: ScriptedImageServer
) -> None:
    """A create has found its brick and waits for an object; another makes room meanwhile."""
    volumes = tmp_path / "volumes"
    cache = ObjectCache(tmp_path / "cache", 1 << 20)
    images = Images(server.address, None, cache)
    roots = Roots([volumes], cache, images, BootLoaders(tmp_path / "loaders"))
    host = SmallHost()
    host.left = 0
    agent = agent_of(roots, host)
    image = await images.find("app")

    def wanted(ip: str) -> RootWanted:
        (volumes / ip).mkdir()
        path = volumes / ip / "root"
        return RootWanted(image, SIZE, path, label_of(ip), FirmwareType.DEFAULT, (), {})

    await roots.make(wanted("198.51.100.2"), Timeline())
    (brick,) = [path for path in (volumes / BRICKS).iterdir() if "." not in path.name]
    (kernel,) = image.tree.objects()
    await cache.drop([kernel])
    server.hang = asyncio.Event()
    server.calls.clear()
    making = asyncio.create_task(roots.make(wanted("198.51.100.3"), Timeline()))
    while "GetObjects 1" not in server.calls:
        await asyncio.wait([making], timeout=0.01)
    await agent.make_room([1])
    server.hang.set()
    await making
    assert brick.exists()
    await agent.make_room([1])
    await roots.close()
    assert list((volumes / BRICKS).iterdir()) == []
    await images.close()
    cache.close()


def agent_of(roots: Roots, host: SmallHost) -> Agent:
    book = cast("AddressBook", SimpleNamespace(on_change=[]))
    ledger = Ledger(host, book, list(roots.stores))
    return Agent(cast("Parts", SimpleNamespace(roots=roots, ledger=ledger, book=book, wiring=None)))


class FreeingHost(SmallHost):
    """Where one of three bricks goes there are ``size`` bytes more."""

    store: BrickStore | None = None
    size = 0

    def space(self, directory: Path) -> Space:
        found = super().space(directory)
        gone = 3 - len(self.store.list()) if self.store is not None else 0
        return replace(found, available=found.available + gone * self.size)


async def test_bricks_go_only_where_that_makes_enough_room(
    tmp_path: Path, server: ScriptedImageServer
) -> None:
    async with opened(tmp_path, server) as (roots, images):
        host = FreeingHost()
        agent = agent_of(roots, host)
        store = roots.stores[tmp_path / "volumes"]
        for number in range(3):
            wanted = await wanted_by(images, tmp_path, f"{number}", size=SIZE + number * MIB)
            await roots.make(wanted, Timeline())
        await store.synced()
        bricks = sorted(store.list(), key=lambda brick: brick.size)
        size = bricks[0].disk_usage()
        host.left = 10 * size

        async def left(wanted: int, within: Path | None = None) -> list[int]:
            await agent.make_room([wanted], within)
            return sorted(brick.size // MIB for brick in store.list())

        assert await left(10 * size - 1) == [64, 65, 66]  # there is room
        assert await left(14 * size) == [64, 65, 66]  # there never will be
        assert await left(1 << 60, tmp_path / "volumes") == [64, 65, 66]
        host.store, host.size = store, size
        assert len(await left(10 * size + 1)) == 2
        assert len(await left(11 * size + 1, tmp_path / "volumes")) == 1


@asynccontextmanager
async def opened(place: Path, server: ScriptedImageServer) -> AsyncIterator[tuple[Roots, Images]]:
    cache = ObjectCache(place / "cache", 1 << 20)
    images = Images(server.address, None, cache)
    roots = Roots([place / "volumes"], cache, images, BootLoaders(place / "loaders"))
    yield roots, images
    await roots.close()
    await images.close()
    cache.close()


async def wanted_by(images: Images, place: Path, name: str, **changes: object) -> RootWanted:
    """A root that is booted by a boot loader, in a directory of its own."""
    (place / "volumes" / name).mkdir(parents=True)
    wanted = RootWanted(
        image=await images.find("app"),
        size=SIZE,
        path=place / "volumes" / name / "root",
        label="label",
        firmware=FirmwareType.DEFAULT,
        directories=(),
        files={},
        options=lambda has_initrd: f"initrd={has_initrd}",
    )
    return replace(wanted, **changes)  # type: ignore[arg-type]


def grub_config_of(wanted: RootWanted, place: Path) -> str:
    raw = place / "raw"
    run("qemu-img", "convert", "-O", "raw", wanted.path, raw)
    return run("debugfs", "-R", f"cat {GRUB_CONFIG}", f"{raw}?offset={MIB}")


async def test_a_boot_loader_is_part_of_the_brick(
    tmp_path: Path, server: ScriptedImageServer
) -> None:
    async with opened(tmp_path, server) as (roots, images):
        first, second, third = [Timeline() for _ in range(3)]
        wanted = await wanted_by(images, tmp_path, "one")
        layer = await roots.make(wanted, first)
        assert [phase.name for phase in first.phases] == [
            *("make boot loader", "fetch objects", "unpack", "install boot loader", "layer")
        ]
        assert not wanted.path.with_name("kernel").exists()
        assert "linux '/boot/vmlinuz-1' 'initrd=False'\n" in grub_config_of(wanted, tmp_path)
        other = await wanted_by(images, tmp_path, "two")
        assert await roots.make(other, second) == layer
        assert [phase.name for phase in second.phases] == ["layer"]
        direct = await roots.make(await wanted_by(images, tmp_path, "three", options=None), third)
        assert direct.loader == ""
        assert direct.backing != layer.backing
    # A brick that was lost is made again, with the boot loader that it had.
    brick = Path(layer.backing)
    before = brick.read_bytes()
    brick.unlink()
    (tmp_path / "loaders" / "mbr-of-a-later-grub").touch()
    async with opened(tmp_path, server) as (roots, images):
        wanted = await wanted_by(images, tmp_path, "four")
        assert (await roots.restore(wanted, layer.loader)).path == brick
    assert brick.read_bytes() == before


async def test_whose_grub_config(tmp_path: Path, server: ScriptedImageServer) -> None:
    own = tmp_path / "own"
    (own / "boot" / "grub").mkdir(parents=True)
    (own / "etc").mkdir()
    (own / "boot" / "grub" / "grub.cfg").write_text("the image's")
    server.add("own", own)
    async with opened(tmp_path, server) as (roots, images):
        image = await images.find("own")
        for name, files, text in (
            ("one", {}, "the image's"),
            ("two", {"boot//grub/./grub.cfg": b"the overlay's"}, "the overlay's"),
        ):
            wanted = await wanted_by(images, tmp_path, name, image=image, files=files)
            await roots.make(wanted, Timeline())
            assert grub_config_of(wanted, tmp_path) == text


async def test_nothing_to_boot(
    tmp_path: Path, server: ScriptedImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare" / "boot").mkdir(parents=True)
    server.add("bare", tmp_path / "bare")
    async with opened(tmp_path, server) as (roots, images):
        empty = await wanted_by(images, tmp_path, "one", image=await images.find("bare"))
        with pytest.raises(ImageTreeError, match="no kernel image found"):
            await roots.make(empty, Timeline())
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BootLoaderMissingError, match="grub-mkimage is not there"):
            await roots.make(await wanted_by(images, tmp_path, "two"), Timeline())
