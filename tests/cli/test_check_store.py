"""``check-store`` of both daemons, as a user runs it: beside what uses the store, and alone."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallstack.durable import boot_id
from smallstack.objects.cache import ObjectCache
from smallstack.objects.store import ObjectStore
from smallstack.proto.enums import FirmwareType
from smallstack.volumes.brick import PENDING, BrickStore
from tests.objects.sources import MemorySource, digest
from tests.volumes.test_brick import IMAGE, SIZE, make_tree
from tests.volumes.trees import Objects

CONTENTS = [b"%d" % number * (1 + number * 37) for number in range(1, 200)]
LARGE = [b"large" * 300_000, b"larger" * 300_000]


def run(daemon: str, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smallstack.cli.smallstack", daemon, "--state-dir", str(state)]
    return subprocess.run(
        [*command, "check-store", *arguments], capture_output=True, text=True, check=False
    )


def result(done: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("daemon", ["hypervisor", "imageserver"])
def test_a_store_that_is_not_there(tmp_path: Path, daemon: str) -> None:
    done = run(daemon, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    expected = f"smallstack: cannot use the object store {tmp_path}/objects: No such file"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_the_agents_cache(tmp_path: Path) -> None:
    contents = [*CONTENTS, *LARGE]
    source = MemorySource(*contents)
    hashes = [digest(content) for content in contents]
    cache = ObjectCache(tmp_path / "objects", 1 << 30)
    asyncio.run(cache.ensure(source.objects(), source))

    healthy = result(run("hypervisor", tmp_path, "--format", "json"), 0)
    assert healthy["objects"] == len(contents)
    assert healthy["bytes"] == sum(map(len, contents))
    assert (healthy["wrong"], healthy["missing"], healthy["problems"]) == (0, 0, [])

    packed, alone = cache.place(hashes[3]), cache.place(digest(LARGE[0]))
    assert (packed.packed, alone.packed) == (True, False)
    with packed.path.open("r+b") as file:
        file.seek(packed.offset)
        file.write(b"!" * packed.size)
    overwrite(alone.path, LARGE[0][:-1])
    cache.place(digest(LARGE[1])).path.unlink()
    harmed = [hashes[3], digest(LARGE[0]), digest(LARGE[1])]
    stray = cache._store.path(digest(b"in no index"))
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"half")
    damaged = run("hypervisor", tmp_path, "--format", "json")
    found = result(damaged, 1)
    assert (found["wrong"], found["missing"], found["not_indexed"]) == (2, 1, 1)
    assert {problem["name"] for problem in found["problems"]} == {
        f"object {hash_.hex()}" for hash_ in harmed
    }
    last = damaged.stderr.splitlines()[-1]
    assert last.startswith("smallstack: 3 thing(s) are wrong; with the daemon stopped, --repair")
    assert hashes[3] in cache, "nothing was changed"

    busy = run("hypervisor", tmp_path, "--repair")
    assert busy.returncode == 1
    assert "is in use by another process: stop it first" in busy.stderr
    cache.close()
    repaired = result(run("hypervisor", tmp_path, "--repair", "--format", "json"), 1)
    assert repaired["repaired"] == 3
    assert "missing,0" in run("hypervisor", tmp_path, "--format", "csv").stdout
    cache = ObjectCache(tmp_path / "objects", 1 << 30)
    asyncio.run(cache.ensure(source.objects(), source))
    assert sorted(source.asked[-1]) == sorted(harmed)
    cache.close()


def test_the_agents_bricks(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")
    fs = make_tree(objects, 1)

    async def make() -> Path:
        store = BrickStore(tmp_path / "volumes/bricks", objects)
        brick = await store.get(fs, IMAGE, SIZE, FirmwareType.BIOS)
        await store.synced()
        return brick.path

    brick = asyncio.run(make())
    brick.with_name("half.~1").write_bytes(b"")
    found = result(run("hypervisor", tmp_path, "--format", "json"), 0)
    assert (found["bricks"], found["pending_bricks"]) == (1, 0)
    assert found["brick_bytes"] == brick.stat().st_blocks * 512
    mark = brick.with_name(brick.name + PENDING)
    mark.write_text(boot_id())
    found = result(run("hypervisor", tmp_path, "--format", "json"), 0)
    assert found["pending_bricks"] == 1
    mark.write_text("another boot")
    found = result(run("hypervisor", tmp_path, "--format", "json"), 1)
    assert found["pending_bricks"] == 0
    (problem,) = found["problems"]
    assert problem["name"] == f"brick {brick}"
    assert "was not yet safe on disk when the host went down" in problem["detail"]
    mark.rename(brick.with_name("gone" + PENDING))
    result(run("hypervisor", tmp_path, "--format", "json"), 0)
    brick.chmod(0o600)
    with brick.open("r+b") as file:
        file.seek((1 << 20) + 1024 + 64)  # in the super block
        file.write(b"damage")
    found = result(run("hypervisor", tmp_path, "--format", "json"), 1)
    assert [problem["name"] for problem in found["problems"]] == [f"brick {brick}"]
    os.truncate(brick, 0)
    assert result(run("hypervisor", tmp_path, "--format", "json"), 1)["problems"]


def test_the_image_servers_store(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "objects")
    for content in CONTENTS:
        store.put(content)
    bad = digest(CONTENTS[7])
    overwrite(store.path(bad), b"other bytes")
    found = result(run("imageserver", tmp_path, "--format", "json", "--jobs", "1"), 1)
    assert (found["objects"], found["wrong"]) == (len(CONTENTS), 1)
    assert found["problems"][0]["name"] == f"object {bad.hex()}"
    assert store.size(bad), "only told of"
    assert "is in use by another process" in run("imageserver", tmp_path, "--repair").stderr
    store.close()
    assert "repaired" in run("imageserver", tmp_path, "--repair", "--format", "yaml").stdout
    assert run("imageserver", tmp_path).returncode == 0
