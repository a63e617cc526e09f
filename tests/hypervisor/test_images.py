"""Finding images: one question for a known one, clear words for every trouble."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import (
    EmptyDirectoryError,
    ImageMissingError,
    ImageServerError,
    ImageTreeError,
)
from smallstack.hypervisor.images import KEPT_CONNECTIONS, KEPT_IMAGES, Images
from smallstack.images.model import tree_digest
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import ObjectCorruptError, ObjectMissingError
from smallstack.proto.image import Image
from smallstack.proto.kinds import Time
from tests.hypervisor.image_server import ScriptedImageServer


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "boot").mkdir(parents=True)
    (directory / "boot" / "vmlinuz-1").write_bytes(b"kernel" * 1000)
    (directory / "hello").write_text("hello\n")
    return directory


@pytest.fixture
async def server(tree: Path) -> AsyncIterator[ScriptedImageServer]:
    scripted = ScriptedImageServer()
    scripted.add("app", tree)
    scripted.add("dir/2026-01", tree)
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def images(server: ScriptedImageServer, tmp_path: Path) -> AsyncIterator[Images]:
    cache = ObjectCache(tmp_path / "cache", 1 << 20)
    found = Images(server.address, None, cache)
    yield found
    await found.close()
    cache.close()


async def test_a_known_image_costs_one_question(
    images: Images, server: ScriptedImageServer
) -> None:
    first = await images.find("app")
    assert server.calls == ["CheckDirectory app", "GetImage app"]
    server.calls.clear()
    assert await images.find("/app/") is first
    assert server.calls == ["CheckImage app"]
    assert first.tree.lookup(b"/hello") is not None


async def test_a_directory_means_its_latest(images: Images, server: ScriptedImageServer) -> None:
    assert (await images.find("dir")).name == "dir/2026-01"
    server.images["dir/2026-02"] = server.images["app"]
    assert (await images.find("dir")).name == "dir/2026-02"
    server.calls.clear()
    assert (await images.find("dir")).name == "dir/2026-02"
    assert server.calls == ["CheckDirectory dir", "FindLatestImage dir"]


async def test_equal_trees_have_equal_digests(images: Images, server: ScriptedImageServer) -> None:
    """Bricks are kept by this digest: two names of one tree share theirs."""
    app, other = await images.find("app"), await images.find("dir")
    assert app.digest == other.digest == tree_digest(app.tree)
    assert len(app.digest) == 32


async def test_a_deleted_image_is_forgotten(images: Images, server: ScriptedImageServer) -> None:
    await images.find("app")
    image = server.images.pop("app")
    with pytest.raises(ImageMissingError, match=r"timeout getting image: 'app' is not on 127"):
        await images.find("app")
    server.images["app"] = image
    await images.find("app")


async def test_it_is_told_before_an_image_is_waited_for(
    images: Images, server: ScriptedImageServer
) -> None:
    told: list[int] = []

    async def waiting() -> None:
        told.append(server.calls.count("GetImage none"))

    await images.find("app", 10**9, waiting)
    assert told == []
    with pytest.raises(ImageMissingError):
        await images.find("none", 1, waiting)
    assert told == [0]
    with pytest.raises(ImageMissingError):
        await images.find("none", 0, waiting)
    assert told == [0]


async def test_an_image_that_expires_is_asked_for_again(
    images: Images, server: ScriptedImageServer
) -> None:
    server.images["app"].expires_at = Time.from_nanoseconds(10**9)
    await images.find("app")
    server.calls.clear()
    await images.find("app")
    assert "GetImage app" in server.calls


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("none", ImageMissingError, "timeout getting image: 'none'"),
        ("empty", EmptyDirectoryError, "no images in directory: empty"),
        ("bare", ImageTreeError, "image bare cannot be a VM's root: it has no file system"),
    ],
)
async def test_refusals(
    images: Images, server: ScriptedImageServer, name: str, error: type[Exception], text: str
) -> None:
    server.images["bare"] = Image()
    with pytest.raises(error, match=text):
        await images.find(name)


async def test_concurrent_creates_share_one_transfer(
    images: Images, server: ScriptedImageServer
) -> None:
    server.hang = asyncio.Event()
    finding = [asyncio.create_task(images.find("app")) for _ in range(5)]
    while "GetImage app" not in server.calls:
        await asyncio.wait(finding, timeout=0.01)
    finding[0].cancel()
    server.hang.set()
    results = await asyncio.gather(*finding, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len({id(r) for r in results[1:]}) == 1
    assert server.calls.count("GetImage app") == 1


async def test_only_so_many_trees_are_kept(images: Images, server: ScriptedImageServer) -> None:
    for number in range(KEPT_IMAGES + 2):
        server.images[f"i{number}"] = server.images["app"]
        await images.find(f"i{number}")
    assert len(images._known) == KEPT_IMAGES


async def test_nobody_listens(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "cache", 1 << 20)
    images = Images("127.0.0.1:1", None, cache)
    with pytest.raises(ImageServerError, match=r"error connecting to image server: 127.0.0.1:1: "):
        await images.find("app")
    cache.close()


async def test_a_server_that_comes_back_is_used_again(
    images: Images, server: ScriptedImageServer
) -> None:
    """The idle connection is cut in between: the next question opens another."""
    await images.find("app")
    (idle,) = images._idle
    idle.client.conn.abort()
    await images.find("app")


async def test_questions_do_not_wait_for_one_another(
    images: Images, server: ScriptedImageServer
) -> None:
    """A server that answers nothing has been asked everything, and no connection is kept."""
    server.silent = asyncio.Event()
    count = KEPT_CONNECTIONS + 3
    finding = [asyncio.create_task(images.find("app")) for _ in range(count)]
    while len(server.calls) < count:
        assert not (await asyncio.wait(finding, timeout=0.01))[0]
    server.silent.set()
    await asyncio.gather(*finding)
    assert len(images._idle) == KEPT_CONNECTIONS


async def test_a_server_that_answers_nothing(
    images: Images, server: ScriptedImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await images.find("app")
    server.silent = asyncio.Event()
    monkeypatch.setattr("smallstack.hypervisor.images.ASK_SECONDS", 0.01)
    with pytest.raises(ImageServerError, match="it does not answer"):
        await images.find("app")
    assert images._idle == []


async def test_a_server_that_dies_in_an_answer(
    images: Images, server: ScriptedImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallstack.hypervisor.images.KEPT_CONNECTIONS", 0)  # a fresh one is no use
    server.hang = asyncio.Event()
    finding = asyncio.create_task(images.find("app"))
    while "GetImage app" not in server.calls:
        await asyncio.wait([finding], timeout=0.01)
    await server.stop()
    with pytest.raises(ImageServerError, match="it went away in the middle of an answer"):
        await finding


async def test_objects(images: Images, server: ScriptedImageServer) -> None:
    image = await images.find("app")
    server.cut_after = 6003  # in the middle of the second object, whichever that is
    done = await images.fetch(image.tree.objects())
    assert done.fetched == 2
    assert server.calls[-2:] == ["GetObjects 2", "GetObjects 1"]


async def test_missing_and_corrupt_objects(images: Images, server: ScriptedImageServer) -> None:
    image = await images.find("app")
    kernel = next(h for h, size in image.tree.objects().items() if size == 6000)
    good = server.sink.objects[kernel]
    server.corrupt(kernel)
    with pytest.raises(ObjectCorruptError, match="is corrupt"):
        await images.fetch(image.tree.objects())
    del server.sink.objects[kernel]
    with pytest.raises(ObjectMissingError, match="are not on"):
        await images.fetch(image.tree.objects())
    server.sink.objects[kernel] = good
    await images.fetch(image.tree.objects())
