"""Objects by zstd (GetCompressedObjects) from a real server: who may ask, who does, what goes."""

from pathlib import Path

import pytest

from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import FetchError, ObjectMissingError
from smallstack.objects.packed import PIECE
from smallstack.objects.peer import Compression, PeerSource
from tests.imageserver.conftest import Running, Serve
from tests.objects.sources import digest

CONTENTS = [b"%d of many lines\n" % number * (100 + number) for number in range(300)]
CONTENTS.append(b"a large one " * (PIECE // 4))
WANTED = {digest(content): len(content) for content in CONTENTS}
TOTAL = sum(map(len, CONTENTS))


async def fetch(running: Running, place: Path, user: str, compression: Compression) -> int:
    """Fetch everything and check it; the bytes that the server sent for it."""
    cache = ObjectCache(place, 1 << 26)
    before = running.inside.objects.bytes_sent
    source = PeerSource("the server", running.as_user(user).connect, compression)
    try:
        assert (await cache.ensure(WANTED, source)).fetched == len(WANTED)
        for content in CONTENTS:
            assert b"".join(cache.place(digest(content)).read()) == content
    finally:
        cache.close()
    return running.inside.objects.bytes_sent - before


async def upload(running: Running) -> None:
    async with running.operator.connect() as client:
        await ObjectServerClient(client).add_objects([NewObject(one) for one in CONTENTS])


async def test_only_on_request_between_peers_of_one_machine(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        await upload(running)
        assert await fetch(running, tmp_path / "1", "operator", "auto") == TOTAL
        assert await fetch(running, tmp_path / "2", "operator", "none") == TOTAL
        assert await fetch(running, tmp_path / "3", "operator", "zstd") < TOTAL // 10


async def test_the_rights_are_those_of_the_plain_method(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        await upload(running)
        assert await fetch(running, tmp_path / "1", "fetcher", "zstd") < TOTAL // 10
        with pytest.raises(FetchError, match="access to method denied"):
            await fetch(running, tmp_path / "2", "user", "zstd")
    public = frozenset({"ObjectServer.GetObjects"})
    async with serve(tmp_path, public=public) as running:
        assert await fetch(running, tmp_path / "3", "user", "zstd") < TOTAL // 10


async def test_what_lacks_is_told_in_the_same_words(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running:
        await upload(running)
        cache = ObjectCache(tmp_path / "cache", 1 << 26)
        source = PeerSource("the server", running.operator.connect, "zstd")
        with pytest.raises(ObjectMissingError, match=digest(b"gone").hex()):
            await cache.ensure({**WANTED, digest(b"gone"): 4}, source)
        cache.close()
