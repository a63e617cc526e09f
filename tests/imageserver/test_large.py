"""Much at once: the loop stays free, memory stays bounded."""

import asyncio
import filecmp
import hashlib
from pathlib import Path

import pytest

from smallstack.client.imageserver import ImageServerClient
from smallstack.control.images import NewImage, Progress, add_image, get_image
from smallstack.objects.cache import ObjectCache
from smallstack.objects.peer import PeerSource
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.image import Image
from tests.conftest import Watch
from tests.imageserver.conftest import Serve


@pytest.fixture
def small_files(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for number in range(3000):
        where = root / f"d{number % 50}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"f{number}").write_bytes(b"%d\n" % number * 20)
    return root


async def test_thousands_of_small_objects(
    serve: Serve, tmp_path: Path, small_files: Path, keeps_loop_free: Watch
) -> None:
    async def there_and_back(number: int) -> None:
        place = tmp_path / f"{number}"
        async with serve(place) as running:
            added = await add_image(running.operator, NewImage("one", small_files), Progress())
            assert added.uploaded == 3000
            async with running.operator.connect() as client:
                image = await ImageServerClient(client).get_image("one")
                assert image is not None
                assert image.file_system is not None
                objects = image.file_system.objects()
                cache = ObjectCache(place / "cache", 1 << 30)
                source = PeerSource("the server", running.operator.connect)
                assert (await cache.ensure(objects, source)).fetched == 3000
                await ImageServerClient(client).delete_image("one")
            await asyncio.to_thread(cache.close)

    await keeps_loop_free(there_and_back)


CONTENT = b"the same everywhere"


@pytest.fixture
def many_inodes() -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=0)
    digest = hashlib.sha512(CONTENT).digest()
    for number in range(30_000):
        inode = builder.add(mode=0o100644, size=len(CONTENT), hash=digest, mtime_ns=number)
        builder.link(0, b"file-%d" % number, inode)
    return builder.build()


async def test_a_tree_of_many_inodes(
    serve: Serve, tmp_path: Path, many_inodes: FileSystem, keeps_loop_free: Watch
) -> None:
    async def there_and_back(number: int) -> None:
        place = tmp_path / f"{number}"
        async with serve(place) as running, running.operator.connect() as client:
            running.inside.store.put(CONTENT)
            images = ImageServerClient(client)
            await images.add_image("many", Image(file_system=many_inodes))
            got = await images.get_image("many")
            assert got is not None
            assert got.file_system is not None
            assert got.file_system.num_regular_inodes == 30_000
            assert got.file_system.inodes == many_inodes.inodes

    await keeps_loop_free(there_and_back)


@pytest.fixture
def large_files(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(6):
        (root / f"f{number}").write_bytes(bytes([number]) * (6 << 20))
    return root


async def test_large_files_there_and_back(
    serve: Serve, tmp_path: Path, large_files: Path, keeps_loop_free: Watch
) -> None:
    async def there_and_back(number: int) -> None:
        place = tmp_path / f"{number}"
        out = place / "out"
        async with serve(place) as running:
            progress = Progress()
            await add_image(running.operator, NewImage("one", large_files), progress)
            assert progress.uploaded_bytes == progress.file_bytes == 36 << 20
            await get_image(running.operator, "one", out, progress)
        same = filecmp.cmpfiles
        names = [path.name for path in large_files.iterdir()]
        found = await asyncio.to_thread(same, large_files, out, names, shallow=False)
        assert sorted(found[0]) == sorted(names)

    await keeps_loop_free(there_and_back)
