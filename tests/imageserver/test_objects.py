"""The ObjectServer service as its clients see it, and what keeps objects from being lost."""

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from smallstack.client.errors import ObjectsMissingError, ServiceError
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.imageserver.objects import BATCH
from smallstack.imageserver.references import References
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import FetchError, ObjectCorruptError, ObjectMissingError
from smallstack.objects.peer import PeerSource
from smallstack.objects.store import ObjectStore
from smallstack.proto import imageserver
from smallstack.proto.kinds import Hash
from smallstack.proto.objectserver import (
    AddObjectRequest,
    AddObjectResponse,
    GetObjectsRequest,
    GetObjectsResponse,
)
from smallstack.srpc import patience
from smallstack.srpc.client import Client
from smallstack.srpc.errors import ConnectionClosedError
from tests.imageserver.conftest import Serve
from tests.imageserver.test_images import contents, image, running_delete_unreferenced, upload


def digest(data: bytes) -> Hash:
    return Hash(hashlib.sha512(data).digest())


async def unreferenced(client: Client) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    async with client.raw("ImageServer.ListUnreferencedObjects") as conn:
        while (one := await conn.decode(imageserver.Object)).size:
            found[one.hash] = one.size
    return found


async def test_objects_there_and_back(serve: Serve, tmp_path: Path) -> None:
    data = [*contents(600), os.urandom(3 * BATCH + 1), b"x" * BATCH]
    file = tmp_path / "file"
    file.write_bytes(data[-2])
    async with serve(tmp_path) as running, running.operator.connect() as client:
        objects = ObjectServerClient(client)
        new = [NewObject(content, digest(content)) for content in data[:-2]]
        new += [NewObject(file), NewObject(data[-1])]
        replies = await objects.add_objects(new)
        assert [reply.hash for reply in replies] == [digest(content) for content in data]
        assert all(reply.added for reply in replies)
        assert not any(reply.added for reply in await objects.add_objects(new[:10]))
        hashes = [digest(content) for content in data]
        sizes = await objects.check_objects([*hashes, bytes(64)])
        assert sizes == [*map(len, data), 0]
        got = []
        async for reader in objects.get_objects(hashes):
            got.append(await reader.read_all())  # noqa: PERF401
        assert got == data
        assert running.inside.objects.bytes_sent == sum(map(len, data))
        await client.ping()
        assert running.inside.objects.slots_used == 0
        assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


async def test_a_missing_object_fails_the_whole_request(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, [b"here"])
        objects = ObjectServerClient(client)
        one, two = digest(b"gone 1"), digest(b"gone 2")
        for hashes, text in (
            ([digest(b"here"), one], f"unknown object: {one}"),
            ([one, digest(b"here"), two], f"first of 2 unknown objects: {one}"),
        ):
            with pytest.raises(ObjectsMissingError, match=text):
                async for _ in objects.get_objects(hashes):
                    pass
        source = PeerSource("the server", running.operator.connect)
        cache = ObjectCache(tmp_path / "cache", 1 << 20)
        with pytest.raises(ObjectMissingError, match="on the server") as caught:
            await cache.ensure({digest(b"here"): 4, one: 6, two: 6}, source)
        assert caught.value.count == 2
        cache.close()


async def test_wrong_digests_are_refused_and_the_stream_goes_on(
    serve: Serve, tmp_path: Path
) -> None:
    large = os.urandom(2 * BATCH)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        with pytest.raises(ServiceError, match="hash mismatch: expected: 0000"):
            await ObjectServerClient(client).add_objects([NewObject(b"x", bytes(64))])
    async with serve(tmp_path) as running, running.operator.connect() as client:
        replies = []
        async with client.raw("ObjectServer.AddObjects") as conn:
            for content, expected in ((large, Hash()), (b"good", None), (b"bad", Hash())):
                conn.encode(AddObjectRequest(length=len(content), expected_hash=expected))
                conn.write(content)
            conn.encode(AddObjectRequest())
            await conn.flush()
            replies = [await conn.decode(AddObjectResponse) for _ in range(3)]
        assert [bool(reply.error_string) for reply in replies] == [True, False, True]
        assert replies[1].hash == digest(b"good")
        assert dict(running.inside.store.list()) == {digest(b"good"): 4}


async def test_a_client_that_goes_away_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        for sent in (0, 1, BATCH, 3 * BATCH):
            async with running.operator.connect() as client:
                with pytest.raises(ZeroDivisionError):
                    async with client.raw("ObjectServer.AddObjects") as conn:
                        conn.encode(AddObjectRequest(length=4 * BATCH))
                        conn.write(b"x" * sent)
                        await conn.flush()
                        raise ZeroDivisionError
        async with running.operator.connect() as client:
            # More than any disk has: refused as soon as it is more than memory holds.
            with pytest.raises(ZeroDivisionError):
                async with client.raw("ObjectServer.AddObjects") as conn:
                    conn.encode(AddObjectRequest(length=1 << 60))
                    conn.write(b"x" * (3 * BATCH))
                    await conn.flush()
                    raise ZeroDivisionError
    assert list((tmp_path / "objects").glob("??")) == []
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


async def test_who_adds_byte_by_byte_is_given_up(serve: Serve, tmp_path: Path) -> None:
    """Never silent for long, yet an object takes for ever; between two, time is the client's."""
    async with (
        serve(tmp_path, stall_timeout=0.2) as running,
        running.operator.connect() as client,
        client.raw("ObjectServer.AddObjects") as conn,
    ):
        conn.encode(AddObjectRequest(length=3))
        conn.write(b"one")
        await conn.flush()
        assert (await conn.decode(AddObjectResponse)).hash == digest(b"one")
        conn.encode(AddObjectRequest(length=1_000_000))
        gone = asyncio.ensure_future(conn.peer_gone())
        while not gone.done():
            conn.write(b"x")
            conn.push()
            await asyncio.wait((gone,), timeout=0.02)
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


async def test_replies_come_while_the_client_is_silent(serve: Serve, tmp_path: Path) -> None:
    async with (
        serve(tmp_path) as running,
        running.operator.connect() as client,
        client.raw("ObjectServer.AddObjects") as conn,
    ):
        for content in (b"one", b"two"):
            conn.encode(AddObjectRequest(length=3))
            conn.write(content)
            await conn.flush()
            assert (await conn.decode(AddObjectResponse)).hash == digest(content)
        conn.encode(AddObjectRequest())


async def test_added_objects_are_held_for_a_while(serve: Serve, tmp_path: Path) -> None:
    data = contents(3)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        assert set(await unreferenced(client)) == {digest(content) for content in data}
        await running_delete_unreferenced(client)
        await ImageServerClient(client).add_image("one", image(data))
        assert await unreferenced(client) == {}
        await ImageServerClient(client).delete_image("one")
        await running_delete_unreferenced(client)
        assert len(await unreferenced(client)) == 3, "still held after the AddObjects"
    async with serve(tmp_path, hold_seconds=0) as running, running.operator.connect() as client:
        await upload(client, data[:2])
        await client.ping()
        await running_delete_unreferenced(client)
        assert await unreferenced(client) == {}
        assert list(running.inside.store.list()) == []


async def test_deleting_never_takes_what_an_image_is_about_to_need(
    serve: Serve, tmp_path: Path
) -> None:
    """Adds and deletes at the same time, with nothing held after the upload."""
    rounds = 30
    async with (
        serve(tmp_path, hold_seconds=0) as running,
        running.operator.connect() as adding,
        running.operator.connect() as deleting,
    ):
        stop = asyncio.Event()

        async def delete() -> None:
            while not stop.is_set():
                await running_delete_unreferenced(deleting)

        deleter = asyncio.create_task(delete())
        added = 0
        for number in range(rounds):
            data = [b"%d of round %d" % (n, number) for n in range(5)]
            try:
                await upload(adding, data)
                await ImageServerClient(adding).add_image(f"i{number}", image(data))
                added += 1
            except Exception as error:
                assert "available" in str(error)
        stop.set()
        await deleter
        store = running.inside.store
        for name in running.inside.catalogue.names():
            found = running.inside.catalogue.get(name)
            assert found is not None
            assert found.file_system is not None
            for hash_ in found.file_system.objects():
                assert store.size(hash_), "an image lost an object"
        assert len(running.inside.catalogue.names()) == added


def test_references(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    a, b, c = (store.put(content) for content in (b"a", b"bb", b"ccc"))
    references = References(store)
    references.add({a: 1, b: 0})  # 0: the image does not tell
    references.add({b: 2})
    assert references.unique_bytes == 3
    assert references.count(b) == 2
    references.hold([c])
    references.hold([c])
    references.remove({b: 2})
    assert references.unique_bytes == 3
    references.release([c])
    assert [references.is_needed(hash_) for hash_ in (a, b, c)] == [True, True, True]
    assert references.delete_unreferenced(100, 0) == (0, 0)
    references.release([c])
    assert references.unreferenced() == [(c, 3)]
    assert references.delete_unreferenced(0, 0) == (0, 0)
    assert references.delete_unreferenced(0, 1) == (1, 3)
    references.remove({a: 1, b: 0})
    assert references.unique_bytes == 0
    assert references.delete_unreferenced(50, 0)[0] == 1
    assert len(references) == 0
    assert references.delete_unreferenced(100, 0)[0] == 1


async def test_corrupt_bytes_on_the_server_reach_nobody(serve: Serve, tmp_path: Path) -> None:
    data = contents(6)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        store = running.inside.store
        bad = store.path(digest(data[3]))
        bad.chmod(0o644)
        bad.write_bytes(b"X" + data[3][1:])
        source = PeerSource("the server", running.operator.connect)
        wanted: dict[bytes, int] = {digest(content): len(content) for content in data}
        cache = ObjectCache(tmp_path / "cache", 1 << 20)
        with pytest.raises(ObjectCorruptError) as caught:
            await cache.ensure(wanted, source)
        assert digest(data[3]).hex() in str(caught.value)
        assert "the server" in str(caught.value)
        assert sum(content in cache for content in wanted) == 3
        # Adding the same content again heals the server.
        await upload(client, data)
        assert (await cache.ensure(wanted, source)).fetched == 3
        # A file cut short ends the transfer in the middle.
        os.truncate(bad, 2)
        await cache.drop([digest(data[3])])
        with pytest.raises(Exception, match="has 2 bytes instead of"):
            await cache.ensure(wanted, source)
        cache.close()


async def test_a_server_that_is_down_or_refuses(serve: Serve, tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "cache", 1 << 20)
    async with serve(tmp_path) as running:
        user = PeerSource("the server", running.as_user("user").connect)
        with pytest.raises(FetchError, match=r"the server: .*access to method denied"):
            await cache.ensure({digest(b"x"): 1}, user)
        port = running.port
    source = PeerSource.dialling(f"127.0.0.1:{port}", running.site.users["operator"])
    with pytest.raises(FetchError, match=f"127.0.0.1:{port}.*[Rr]efused"):
        await cache.ensure({digest(b"x"): 1}, source)
    cache.close()


async def test_no_user_has_all_transfers(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes nothing of what it asked for; those of another go on meanwhile."""
    monkeypatch.setattr("smallstack.imageserver.objects.GET_SLOTS", 3)
    monkeypatch.setattr("smallstack.imageserver.objects.USER_GET_SLOTS", 2)
    large = os.urandom(8 * BATCH)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, [large, b"small"])
        with pytest.raises(ZeroDivisionError):
            async with AsyncExitStack() as hogs:
                for _ in range(4):
                    hog = await hogs.enter_async_context(running.as_user("fetcher").connect())
                    conn = await hogs.enter_async_context(hog.raw("ObjectServer.GetObjects"))
                    conn.encode(GetObjectsRequest(hashes=[digest(large)]))
                    await conn.flush()
                async for reader in ObjectServerClient(client).get_objects([digest(b"small")]):
                    assert await reader.read_all() == b"small"
                await client.ping()
                assert running.inside.objects.slots_used == 2
                raise ZeroDivisionError


async def test_who_takes_objects_too_slowly_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SLOWEST", 1 << 30)
    large = os.urandom(16 * BATCH)
    async with serve(tmp_path, stall_timeout=1) as running, running.operator.connect() as client:
        await upload(client, [large])
        async with client.raw("ObjectServer.GetObjects") as conn:
            conn.encode(GetObjectsRequest(hashes=[digest(large)]))
            await conn.flush()
            await conn.decode(GetObjectsResponse)
            got = 0
            with suppress(ConnectionClosedError):
                while got < len(large) and (data := await conn.read_some(65_536)):
                    got += len(data)
                    await asyncio.sleep(0.02)
            assert got < len(large)


async def test_many_transfers_at_once(serve: Serve, tmp_path: Path) -> None:
    data = [*contents(40), os.urandom(BATCH + 7)]
    wanted: dict[bytes, int] = {digest(content): len(content) for content in data}
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        caches = [ObjectCache(tmp_path / f"cache{n}", 1 << 24) for n in range(10)]
        source = PeerSource("the server", running.operator.connect)
        await asyncio.gather(*(cache.ensure(wanted, source) for cache in caches))
        for cache in caches:
            assert all(hash_ in cache for hash_ in wanted)
            cache.close()
