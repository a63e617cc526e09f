"""The cache and the store when the process is killed and when the disk is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command

FULL = """
import asyncio, os, sys
from pathlib import Path
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import StoreSpaceError, StoreError
from smallstack.objects.store import ObjectStore
from tests.objects.disk import objects_on_disk
from tests.objects.sources import MemorySource

root = Path(sys.argv[1])
filler = root / "filler"


def leave(free):
    "Fill the file system up to so many bytes."
    filler.unlink(missing_ok=True)
    os.sync()
    space = os.statvfs(root)
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, max(1, space.f_bavail * space.f_frsize - free))
    finally:
        os.close(fd)


async def main():
    contents = [bytes([n % 250 + 1]) * (30_000 + n) for n in range(40)]
    contents.append(os.urandom(3 << 20))
    source = MemorySource(*contents)
    source.piece = 50_000
    failures = 0
    for free in range(1 << 16, 6 << 20, 300_000):
        cache = ObjectCache(root / "cache", 1 << 30)
        leave(free)
        try:
            await cache.ensure(source.objects(), source)
        except StoreSpaceError as error:
            assert "no space left on the file system of" in str(error), error
            assert "\\n" not in str(error)
            failures += 1
        assert list((root / "cache/.incoming").iterdir()) == []
        assert objects_on_disk(cache) == set(cache._held)
        for hash_ in cache._held:
            assert b"".join(cache.place(hash_).read()) == source.contents[hash_]
        before = set(cache._held)
        cache.close()
        again = ObjectCache(root / "cache", 1 << 30)
        assert set(again._held) == before
        filler.unlink()
        await again.ensure(source.objects(), source)
        await again.drop(source.contents)
        again.close()
    assert failures > 5, failures
    store = ObjectStore(root / "store")
    leave(100_000)
    for size in (600_000, 8 << 20):
        try:
            store.put(os.urandom(size))
        except StoreSpaceError:
            continue
        raise SystemExit("there was room")
    assert list((root / "store/.incoming").iterdir()) == []
    print("failures", failures)


asyncio.run(main())
"""


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    image, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    script = 'mount -o loop "$0" "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        private_mounts_command(["sh", "-c", script, str(image), str(mount), sys.executable, FULL]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("failures")


def test_killed_at_every_write(tmp_path: Path) -> None:
    library = tmp_path / "killer.so"
    source = Path(__file__).with_name("killer.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.objects.kill_points", tmp_path / "points"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
    print(f"kill points of the object cache: {done.stdout.strip()}")
