"""Objects past the event loop: over a server's Unix socket, where bytes are not encrypted."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import FetchError, ObjectSizeError
from smallstack.objects.peer import PeerSource
from smallstack.proto.objectserver import GetObjectsRequest, GetObjectsResponse
from tests.imageserver.conftest import Running, Serve
from tests.imageserver.test_images import contents, upload
from tests.imageserver.test_objects import digest

LARGE = 3 << 20


def local(running: Running) -> PeerSource:
    return PeerSource("the server", partial(running.operator.connect, move_local=True))


async def idle(running: Running) -> None:
    """Returns once no transfer goes on at the server."""
    async with running.operator.connect() as client:
        while running.inside.objects.slots_used:
            await client.ping()


def sockets() -> int:
    """How many this process has open; none of them, nor a file, may stay after a transfer."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(path.readlink()))
    held = [link for link in links if "/objects/" in link and not link.endswith(".lock")]
    assert not held, "an object is still open"
    return sum(link.startswith("socket:") for link in links)


async def test_all_sizes_come_as_they_are(serve: Serve, tmp_path: Path) -> None:
    data = [
        *contents(300),
        *(os.urandom(size) for size in (1, 262_143, 262_144, 262_145, 1 << 20, (1 << 20) + 1)),
        *(os.urandom(LARGE + n) for n in range(3)),
    ]
    wanted: dict[bytes, int] = {digest(content): len(content) for content in data}
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        async with running.operator.connect(move_local=True) as moved:
            assert moved.conn.tls is None, "or this tests nothing"
        cache = ObjectCache(tmp_path / "cache", 1 << 30)
        assert (await cache.ensure(wanted, local(running))).fetched == len(wanted)
        for content in data:
            assert b"".join(cache.place(digest(content)).read()) == content
        assert running.inside.objects.bytes_sent == sum(map(len, data))
        cache.close()


async def test_a_call_after_a_transfer_is_read_the_usual_way(serve: Serve, tmp_path: Path) -> None:
    data = [os.urandom(LARGE), *contents(5)]
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        async with running.operator.connect(move_local=True) as moved:
            for _ in range(2):
                async with moved.raw("ObjectServer.GetObjects") as conn:
                    conn.encode(GetObjectsRequest(hashes=[digest(one) for one in data]))
                    await conn.flush()
                    reply = await conn.decode(GetObjectsResponse)
                    assert await conn.read_exactly(reply.object_sizes[0]) == data[0]
                    left = sum(reply.object_sizes[1:])
                    with conn.reading_aside() as aside:
                        while left and aside is not None and not conn.has_data():
                            left -= len(await aside.receive(left))
                    await conn.read_exactly(left)
                await moved.ping()


async def test_who_takes_nothing_is_given_up(serve: Serve, tmp_path: Path) -> None:
    data = [os.urandom(4 * LARGE)]
    async with (
        serve(tmp_path, stall_timeout=0.2) as running,
        running.operator.connect() as client,
        running.operator.connect(move_local=True) as moved,
    ):
        await upload(client, data)
        async with moved.raw("ObjectServer.GetObjects") as conn:
            conn.encode(GetObjectsRequest(hashes=[digest(data[0])]))
            await conn.flush()
            await conn.decode(GetObjectsResponse)
            with conn.reading_aside():  # and nobody reads
                await idle(running)
            with pytest.raises(Exception, match="are missing"):
                await conn.read_exactly(len(data[0]))
        assert running.inside.objects.bytes_sent < len(data[0])


async def test_who_goes_away_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    data = [os.urandom(4 * LARGE)]
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        async with running.operator.connect(move_local=True):
            pass  # the socket that is listened on for such clients
        await client.ping()
        before = sockets()
        async with running.operator.connect(move_local=True) as moved:
            with pytest.raises(ZeroDivisionError):
                async with moved.raw("ObjectServer.GetObjects") as conn:
                    conn.encode(GetObjectsRequest(hashes=[digest(data[0])]))
                    await conn.flush()
                    await conn.decode(GetObjectsResponse)
                    raise ZeroDivisionError
        await idle(running)
        assert running.inside.objects.bytes_sent < len(data[0])
        await client.ping()
        while sockets() > before:  # until the server has closed its end too
            await client.ping()


async def test_a_file_that_is_too_short_ends_the_transfer(serve: Serve, tmp_path: Path) -> None:
    for size in (5000, LARGE):
        data = [os.urandom(size), os.urandom(size)]
        wanted: dict[bytes, int] = {digest(content): len(content) for content in data}
        async with serve(tmp_path / str(size)) as running, running.operator.connect() as client:
            await upload(client, data)
            cut = running.inside.store.path(digest(data[1]))
            cut.chmod(0o644)
            sizes = running.inside.objects._sizes

            def then_cut(hashes: list[bytes], cut: Path = cut) -> list[int]:
                found = sizes(hashes)  # type: ignore[arg-type]  # noqa: B023 - of this round
                os.truncate(cut, 7)
                return found

            running.inside.objects._sizes = then_cut  # type: ignore[method-assign,assignment]
            cache = ObjectCache(tmp_path / f"cache{size}", 1 << 30)
            with pytest.raises((FetchError, ObjectSizeError)):
                await cache.ensure(wanted, local(running))
            assert digest(data[1]) not in cache
            cache.close()
            await idle(running)
