"""A hundred thousand objects at once: the loop stays free whatever the cache does with them."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.objects.cache import ObjectCache
from tests.conftest import Watch
from tests.objects.sources import digest

COUNT = 100_000
SIZE = 16
LARGE = b"L" * (5000 * SIZE)


class ReadySource:
    """Objects whose bytes lie ready, so that what is watched is the cache alone."""

    name = "ready"

    def __init__(self, objects: dict[bytes, int], data: bytes) -> None:
        self.objects = objects
        self.sizes: Sequence[int] = []
        self._data = data
        self._sent = 0
        self._begins: dict[bytes, int] = {}
        at = 0
        for hash_, size in objects.items():
            self._begins[hash_] = at
            at += size

    @asynccontextmanager
    async def open_objects(self, hashes: Sequence[bytes]) -> AsyncIterator["ReadySource"]:
        """The objects in their own order, from the first that is asked for on."""
        self.sizes = [len(self._data) // len(self.objects)] * len(hashes)
        self._sent = self._begins[hashes[0]]
        yield self

    async def read(self, limit: int) -> bytes:
        part = self._data[self._sent : self._sent + limit]
        self._sent += len(part)
        return part


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: most file systems take long to remove so many files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30:
        with tempfile.TemporaryDirectory(dir=memory) as name:
            yield Path(name)
    else:
        yield tmp_path


async def test_fetched_found_evicted_and_dropped(place: Path, keeps_loop_free: Watch) -> None:
    contents = [number.to_bytes(4) * (SIZE // 4) for number in range(COUNT)]
    objects = {digest(content): SIZE for content in contents}
    source = ReadySource(objects, b"".join(contents))
    large = ReadySource({digest(LARGE): len(LARGE)}, LARGE)

    caches = []  # to free one takes long, which no daemon does

    async def every_way(number: int) -> None:
        cache = ObjectCache(place / f"{number}", COUNT * SIZE)
        caches.append(cache)
        assert (await cache.ensure(objects, source)).fetched == COUNT
        async with cache.pin(objects):
            assert (await cache.ensure(objects, source)).found == COUNT
        assert (await cache.ensure(large.objects, large)).fetched == 1
        assert len(cache) == COUNT - 5000 + 1
        await cache.drop(objects)
        assert list(cache._held) == list(large.objects)
        await asyncio.to_thread(cache.close)
        await asyncio.to_thread(shutil.rmtree, cache.directory)

    await keeps_loop_free(every_way)
