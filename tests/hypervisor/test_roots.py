"""Bricks under the layers of creates that are not over yet."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.hypervisor.agent import Agent, Parts
from smallstack.hypervisor.images import Images
from smallstack.hypervisor.roots import BRICKS, Roots, RootWanted, label_of
from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import FirmwareType
from smallstack.telemetry.timeline import Timeline
from tests.hypervisor.image_server import ScriptedImageServer

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
    roots = Roots([volumes], cache, images)
    full = SimpleNamespace(usable=lambda _directory: 0)
    agent = Agent(cast("Parts", SimpleNamespace(roots=roots, ledger=full)))
    image = await images.find("app")

    def wanted(ip: str) -> RootWanted:
        (volumes / ip).mkdir()
        path = volumes / ip / "root"
        return RootWanted(image, SIZE, path, label_of(ip), FirmwareType.DEFAULT, (), {})

    await roots.make(wanted("198.51.100.2"), Timeline())
    (brick,) = [path for path in (volumes / BRICKS).iterdir() if "." not in path.name]
    (kernel,) = image.tree.objects()
    cache.drop(kernel)
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
