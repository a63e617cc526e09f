"""A create that is cut short anywhere, by death or by a full disk, leaves nothing.

The points come from the table of steps itself: before, inside and after every one of them.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.client.errors import ServiceError
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.create import Creation
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.steps import Journal, NoUndo, flatten
from tests.integration import agent as hooked
from tests.integration.cloud import Cloud
from tests.network.world import settled

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.timeout(600)]

SAID = ("no space left", "not enough free space")
WHERE = ("before", "inside", "after")


def steps() -> list[str]:
    """Every step of a create, from the table."""
    nothing = cast("Agent", SimpleNamespace(parts=None))
    return [step.name for step in flatten(Creation(nothing, Journal.create(Path("none"))).steps())]


POINTS = [(where, step) for step in steps() for where in WHERE]


def test_every_step_has_an_undo_or_a_reason() -> None:
    nothing = cast("Agent", SimpleNamespace(parts=None))
    for step in flatten(Creation(nothing, Journal.create(Path("none"))).steps()):
        reverse = getattr(step, "reverse", None)
        assert reverse is not None
        if isinstance(reverse, NoUndo):
            assert len(reverse.reason) > 20


async def is_clean(cloud: Cloud, files: list[str]) -> None:
    """No VM, no machine, no tap, no file more than there were; every address is free."""
    assert await cloud.states() == {}
    assert cloud.qemu_pids() == []
    look = cloud.look()
    assert [name for name in look.links if name.startswith("ss")] == []
    assert [f for f in look.files if f not in files] == []


async def attempt(cloud: Cloud) -> None:
    """A create that the agent does not live through."""
    with suppress(ConnectionClosedError):
        await cloud.create(hostname="doomed", user_data=b"data" * 1000)
        pytest.fail("the agent lived")
    assert await cloud.died() == -9


async def test_kill_at_every_point(bare_cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent dies by SIGKILL; the next one undoes what the journal names."""
    cloud = bare_cloud
    await cloud.start_hypervisor()
    await cloud.set_up(count=1)  # an address that were lost would be missed at once
    await cloud.destroy((await cloud.create()).ip_address)
    files = cloud.look().files
    for number, (where, step) in enumerate(POINTS):
        if step in ("image", "root") and number % 2:
            # Every other time what has to be fetched and written is not there yet.
            await cloud.stop_hypervisor()
            shutil.rmtree(cloud.state / "volumes" / "bricks")
            shutil.rmtree(cloud.state / "objects")
            await cloud.start_hypervisor()
        cloud.at(where, step, "kill")
        await attempt(cloud)
        assert not cloud.control.exists()
        await cloud.start_hypervisor()
        await is_clean(cloud, files)
    made = await cloud.create()
    assert made.ip_address == "198.51.100.2"
    await cloud.destroy(made.ip_address)
    await is_clean(cloud, files)
    with capsys.disabled():
        print(f"\nkill points: {len(POINTS)} ({len(steps())} steps)")


@pytest.fixture
async def small_disk(bare_cloud: Cloud, tmp_path: Path) -> AsyncIterator[Path]:
    """An ext4 file system of 200 MiB on a loop device."""
    mount = tmp_path / "mount"
    _mount(tmp_path / "disk", mount)
    try:
        yield mount
    finally:
        await bare_cloud.close()
        assert settled(lambda: subprocess.run(["umount", mount], check=False).returncode == 0)


def _mount(image: Path, mount: Path) -> None:
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(200 << 20)
    _run("mkfs.ext4", "-q", "-m", "0", image)
    _run("mount", "-o", "loop", image, mount)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


async def test_a_full_disk_at_every_point(
    bare_cloud: Cloud, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up in the middle: one clear line, nothing left, the agent serves on."""
    cloud = bare_cloud
    cloud.state = small_disk / "hypervisor"
    await cloud.start_hypervisor(object_cache_size="32M")
    await cloud.set_up(count=1)
    await cloud.destroy((await cloud.create()).ip_address)
    files = cloud.look().files
    refused: list[str] = []
    went_on: list[str] = []
    for cold in (False, True):
        for where, step in POINTS:
            if cold and step not in ("image", "root"):
                continue
            if cold:
                await cloud.stop_hypervisor()
                shutil.rmtree(cloud.state / "volumes" / "bricks")
                shutil.rmtree(cloud.state / "objects")
                await cloud.start_hypervisor(object_cache_size="32M")
            cloud.at(where, step, "fill")
            point = f"{where} {step}{' (cold)' if cold else ''}"
            try:
                made = await cloud.create(hostname="doomed", user_data=b"data" * 5000)
            except ServiceError as error:
                text = str(error).lower()
                assert any(words in text for words in SAID), (point, text)
                assert "\n" not in str(error)
                refused.append(point)
            else:
                went_on.append(point)
                await cloud.destroy(made.ip_address)  # on the full disk
            assert not cloud.control.exists(), point
            assert (await asyncio.to_thread((cloud.state / hooked.FILLER).stat)).st_size > 0
            (cloud.state / hooked.FILLER).unlink()
            await is_clean(cloud, files)
    made = await cloud.create()
    await cloud.destroy(made.ip_address)
    with capsys.disabled():
        print(f"\nfull disk: {len(refused)} points refused, {len(went_on)} went on: {went_on}")
    assert len(refused) >= len(steps())
