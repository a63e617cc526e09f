import asyncio
import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from blake3 import blake3

from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import (
    CacheFullError,
    FetchError,
    ObjectCorruptError,
    ObjectMissingError,
    ObjectNotStoredError,
    ObjectSizeError,
    StoreBusyError,
)
from smallstack.objects.fetch import BATCH as WHOLE_BATCH
from smallstack.objects.source import FIRST_REQUEST
from tests.objects.disk import files_of, objects_on_disk
from tests.objects.sources import MemorySource, digest

QUOTA = 1 << 26
BATCH = WHOLE_BATCH // 2


def contents(count: int, size: int = 1000) -> list[bytes]:
    return [n.to_bytes(8) * (size // 8) for n in range(count)]


async def test_fetches_what_lacks_and_nothing_twice(tmp_path: Path) -> None:
    source = MemorySource(*contents(20), b"L" * (3 * BATCH + 17))
    cache = ObjectCache(tmp_path, QUOTA)
    some = dict(list(source.objects().items())[:5])
    assert await cache.ensure(some, source) == (5, 5000, 0)
    ensured = await cache.ensure(source.objects(), source)
    assert (ensured.fetched, ensured.found) == (16, 5)
    assert await cache.ensure(source.objects(), source) == (0, 0, 21)
    assert [len(asked) for asked in source.asked] == [5, 16]
    for hash_, data in source.contents.items():
        assert hash_ in cache
        assert b"".join(cache.place(hash_).read()) == data
        assert cache.blake3(hash_) == blake3(data).digest()
        assert cache.size(hash_) == len(data)
    assert cache.used_bytes == sum(map(len, source.contents.values()))
    cache.close()


@pytest.mark.parametrize("piece", [1, 7, 64, 999, 1000, 1001, 4096])
async def test_any_cut_of_the_stream_gives_the_same_objects(tmp_path: Path, piece: int) -> None:
    source = MemorySource(*contents(4), b"a", b"bc")
    source.piece = piece
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    for hash_, data in source.contents.items():
        assert b"".join(cache.place(hash_).read()) == data
    cache.close()


async def test_concurrent_calls_fetch_an_object_once(tmp_path: Path) -> None:
    source = MemorySource(*contents(30))
    source.gate.clear()
    cache = ObjectCache(tmp_path, QUOTA)
    items = list(source.objects().items())
    calls = [
        asyncio.create_task(cache.ensure(dict(items[first : first + 20]), source))
        for first in (0, 5, 10)
    ]
    calls += [asyncio.create_task(cache.ensure(source.objects(), source)) for _ in range(5)]
    await source.until_asked_for(30)
    source.gate.set()
    ensured = await asyncio.gather(*calls)
    asked = [hash_ for call in source.asked for hash_ in call]
    assert sorted(asked) == sorted(source.contents), "each exactly once"
    assert sum(one.fetched for one in ensured) == 30
    cache.close()


async def test_a_waiting_call_takes_over_when_the_fetching_one_is_cancelled(tmp_path: Path) -> None:
    source = MemorySource(*contents(3))
    source.gate.clear()
    cache = ObjectCache(tmp_path, QUOTA)
    first = asyncio.create_task(cache.ensure(source.objects(), source))
    await source.until_asked_for(3)
    second = asyncio.create_task(cache.ensure(source.objects(), source))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.gate.set()
    assert (await second).fetched == 3
    assert objects_on_disk(cache) == set(source.contents)
    cache.close()


async def test_a_missing_object_is_one_clear_error(tmp_path: Path) -> None:
    source = MemorySource(*contents(3))
    cache = ObjectCache(tmp_path, QUOTA)
    wanted = source.objects()
    gone = next(iter(source.contents))
    del source.contents[gone]
    with pytest.raises(ObjectMissingError) as caught:
        await cache.ensure(wanted, source)
    assert gone.hex() in str(caught.value)
    assert "memory" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert objects_on_disk(cache) == set()
    cache.close()


async def test_a_corrupt_object_never_enters(tmp_path: Path) -> None:
    source = MemorySource(*contents(6), b"z" * (2 * BATCH))
    cache = ObjectCache(tmp_path, QUOTA)
    wanted = list(source.contents)
    source.corrupt(wanted[3])
    with pytest.raises(ObjectCorruptError) as caught:
        await cache.ensure(source.objects(), source)
    assert wanted[3].hex() in str(caught.value)
    kept = {*wanted[:3], wanted[6]}  # large ones come first
    assert objects_on_disk(cache) == kept, "what was whole before it is kept"
    assert cache.used_bytes == 3000 + 2 * BATCH
    source.corrupt(wanted[3])
    assert (await cache.ensure(source.objects(), source)).fetched == 3
    assert list((tmp_path / ".incoming").iterdir()) == []
    cache.close()


async def test_a_cut_transfer_is_taken_up_again(tmp_path: Path) -> None:
    source = MemorySource(*contents(10))
    source.cut_after = source.next_cut = 3500
    cache = ObjectCache(tmp_path, QUOTA)
    assert (await cache.ensure(source.objects(), source)).fetched == 10
    assert [len(asked) for asked in source.asked] == [10, 7, 4, 1]
    cache.close()


async def test_what_is_asked_for_in_several_requests(tmp_path: Path) -> None:
    large = [bytes([n]) * ((1 << 20) + n) for n in range(1, 4)]
    source = MemorySource(*contents(FIRST_REQUEST + 7, 80), *large)
    cache = ObjectCache(tmp_path, QUOTA)
    assert (await cache.ensure(source.objects(), source)).fetched == FIRST_REQUEST + 10
    assert [len(asked) for asked in source.asked] == [FIRST_REQUEST, 10]
    assert source.asked[0][:3] == [digest(data) for data in reversed(large)], "the largest first"
    for hash_, data in source.contents.items():
        assert b"".join(cache.place(hash_).read()) == data
    cache.close()


@pytest.mark.parametrize("cut", [0, 40_000, 80 * FIRST_REQUEST, 80 * FIRST_REQUEST + 300])
async def test_a_cut_between_several_requests(tmp_path: Path, cut: int) -> None:
    source = MemorySource(*contents(FIRST_REQUEST + 20, 80))
    source.cut_after = cut
    cache = ObjectCache(tmp_path, QUOTA)
    if not cut:
        with pytest.raises(FetchError, match="closed the connection"):
            await cache.ensure(source.objects(), source)
    assert (await cache.ensure(source.objects(), source)).found == 0
    assert objects_on_disk(cache) == set(source.contents)
    cache.close()


async def test_a_cut_that_brings_nothing_is_an_error(tmp_path: Path) -> None:
    source = MemorySource(*contents(2))
    source.cut_after = source.next_cut = 300
    cache = ObjectCache(tmp_path, QUOTA)
    with pytest.raises(FetchError, match="closed the connection 1700 bytes before the end"):
        await cache.ensure(source.objects(), source)
    source.refuse = True
    with pytest.raises(FetchError, match="it is down"):
        await cache.ensure(source.objects(), source)
    assert objects_on_disk(cache) == set()
    assert list((tmp_path / ".incoming").iterdir()) == []
    cache.close()


async def test_a_peer_that_stalls_is_given_up(tmp_path: Path) -> None:
    source = MemorySource(*contents(2))
    source.gate.clear()
    cache = ObjectCache(tmp_path, QUOTA, stall_seconds=0.01)
    with pytest.raises(FetchError, match=r"it sent nothing for 0\.01 s"):
        await cache.ensure(source.objects(), source)
    cache.close()


async def test_sizes_that_are_not_true(tmp_path: Path) -> None:
    source = MemorySource(*contents(2))
    hash_ = next(iter(source.contents))
    source.lie[hash_] = 999
    cache = ObjectCache(tmp_path, QUOTA)
    with pytest.raises(ObjectSizeError, match="has 999 bytes instead of 1000"):
        await cache.ensure(source.objects(), source)
    source.lie.clear()
    await cache.ensure(source.objects(), source)
    with pytest.raises(ObjectSizeError, match="has 1000 bytes instead of 1001"):
        await cache.ensure({hash_: 1001}, source)
    cache.close()


async def test_the_least_recently_used_goes_first_and_pins_stay(tmp_path: Path) -> None:
    data = contents(12)
    source = MemorySource(*data)
    cache = ObjectCache(tmp_path, 10_000)
    hashes = [digest(one) for one in data]
    async with cache.pin([hashes[0]]):
        for hash_ in hashes[:10]:
            await cache.ensure({hash_: 1000}, source)
        await cache.ensure({hashes[1]: 1000}, source)
        await cache.ensure({hashes[10]: 1000, hashes[11]: 1000}, source)
    held = {hash_ for hash_ in hashes if hash_ in cache}
    assert held == set(hashes) - {hashes[2], hashes[3]}
    assert objects_on_disk(cache) == held
    assert cache.used_bytes == 10_000
    cache.close()


async def test_pinning_is_a_use(tmp_path: Path) -> None:
    data = contents(4)
    hashes = [digest(one) for one in data]
    source = MemorySource(*data)
    cache = ObjectCache(tmp_path, 3000)
    for hash_ in hashes[:3]:
        await cache.ensure({hash_: 1000}, source)
    async with cache.pin(hashes[:1]):
        pass
    await cache.ensure({hashes[3]: 1000}, source)
    assert [hash_ in cache for hash_ in hashes] == [True, False, True, True]
    cache.close()


async def test_what_cannot_fit_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    source = MemorySource(*contents(12))
    cache = ObjectCache(tmp_path, 10_000)
    with pytest.raises(CacheFullError, match=r"12000 bytes.*quota is 10000") as caught:
        await cache.ensure(source.objects(), source)
    assert "--object-cache-size" in str(caught.value)
    assert source.asked == []
    items = list(source.objects().items())
    await cache.ensure(dict(items[:8]), source)
    async with cache.pin([hash_ for hash_, _ in items[:8]]):
        with pytest.raises(CacheFullError):
            await cache.ensure(dict(items[8:]), source)
    await cache.ensure(dict(items[8:]), source)
    assert cache.used_bytes == 10_000
    cache.close()


async def test_a_kill_loses_nothing_that_was_whole(tmp_path: Path) -> None:
    source = MemorySource(*contents(10))
    cache = ObjectCache(tmp_path / "a", QUOTA)
    await cache.ensure(source.objects(), source)
    # The state of the disk at this instant is what a kill leaves.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = ObjectCache(tmp_path / "b", QUOTA)
    assert await again.ensure(source.objects(), source) == (0, 0, 10)
    again.close()
    cache.close()


async def test_the_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    data = contents(4)
    hashes = [digest(one) for one in data]
    source = MemorySource(*data)
    cache = ObjectCache(tmp_path, 3000)
    for hash_ in (*hashes[:3], hashes[0]):
        await cache.ensure({hash_: 1000}, source)
    cache.close()
    cache = ObjectCache(tmp_path, 3000)
    await cache.ensure({hashes[3]: 1000}, source)
    assert [hash_ in cache for hash_ in hashes] == [True, False, True, True]
    cache.close()


async def test_a_dropped_object_is_fetched_again(tmp_path: Path) -> None:
    source = MemorySource(*contents(3))
    hash_ = next(iter(source.contents))
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    await cache.drop([hash_])
    await cache.drop([hash_])
    assert hash_ not in cache
    assert cache.size(hash_) is None
    assert cache.used_bytes == 2000
    for ask in (cache.place, cache.facts, cache.blake3):
        with pytest.raises(ObjectNotStoredError):
            ask(hash_)
    assert (await cache.ensure(source.objects(), source)).fetched == 1
    cache.close()


async def test_quick_sums_serve_as_long_as_something_is_pinned(tmp_path: Path) -> None:
    source = MemorySource(*contents(3), b"large" * 400_000)
    cache = ObjectCache(tmp_path, QUOTA)
    async with cache.pin(source.contents):
        await cache.ensure(source.objects(), source)
        assert [len(cache.facts(hash_)[0]) for hash_ in source.contents] == [16] * 4
        hash_ = next(iter(source.contents))
        await cache.drop([hash_])
        with pytest.raises(ObjectNotStoredError):
            cache.facts(hash_)
        await cache.ensure(source.objects(), source)
        assert len(cache.facts(hash_)[0]) == 16
    assert [cache.facts(hash_)[0] for hash_ in source.contents] == [
        cache.blake3(hash_) for hash_ in source.contents
    ]
    cache.close()


async def test_what_goes_between_two_attempts_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cut attempts bring as many objects as are wanted, one of them twice."""
    source = MemorySource(*contents(3))
    source.cut_after, source.next_cut = 1500, 2500
    hashes = list(source.contents)
    cache = ObjectCache(tmp_path, QUOTA)
    loop = asyncio.get_running_loop()
    dropped: list[bytes] = []

    def free(*_: object) -> None:  # in a thread, between the attempts
        if not dropped:
            dropped.append(hashes[0])
            asyncio.run_coroutine_threadsafe(cache.drop(dropped), loop).result()

    monkeypatch.setattr("smallstack.objects.cache._free", free)
    await cache.ensure(source.objects(), source)
    assert [hash_ in cache for hash_ in hashes] == [True] * 3
    assert [len(asked) for asked in source.asked] == [3, 3, 1]
    cache.close()


async def test_dropping_does_not_hold_the_loop_while_the_index_is_busy(tmp_path: Path) -> None:
    source = MemorySource(*contents(3))
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    with cache._index._lock:  # as a thread that compacts it
        dropping = asyncio.create_task(cache.drop(source.contents))
        await asyncio.to_thread(lambda: None)
        assert not dropping.done()
        assert len(cache) == 0
        again = asyncio.create_task(cache.ensure(source.objects(), source))
    await dropping
    assert (await again).fetched == 3
    assert objects_on_disk(cache) == set(source.contents)
    cache.close()


async def test_files_that_went_or_were_cut_are_fetched_again(tmp_path: Path) -> None:
    source = MemorySource(*contents(4))
    hashes = list(source.contents)
    cache = ObjectCache(tmp_path, QUOTA, pack_up_to=0)
    await cache.ensure(source.objects(), source)
    cache.place(hashes[0]).path.unlink()
    os.truncate(cache.place(hashes[1]).path, 10)
    assert (await cache.ensure(source.objects(), source)).fetched == 2
    assert cache.used_bytes == 4000
    for hash_, data in source.contents.items():
        assert b"".join(cache.place(hash_).read()) == data
    cache.close()


async def test_packs_that_went_or_were_cut_are_fetched_again(tmp_path: Path) -> None:
    source = MemorySource(*contents(6))
    items = list(source.objects().items())
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(dict(items[:2]), source)
    await cache.ensure(dict(items[2:]), source)
    one, other = cache.place(items[0][0]), cache.place(items[2][0])
    assert one.path != other.path
    assert one.packed
    one.path.unlink()
    os.truncate(other.path, other.offset + 1000 + 4096 - 1000 + 500)
    with pytest.raises(OSError, match="No data"):
        list(cache.place(items[3][0]).read())
    assert (await cache.ensure(source.objects(), source)).fetched == 5
    for hash_, data in source.contents.items():
        assert b"".join(cache.place(hash_).read()) == data
    assert objects_on_disk(cache) == set(source.contents)
    cache.close()


async def test_an_object_that_goes_gives_back_its_room(tmp_path: Path) -> None:
    source = MemorySource(*contents(9, 9000))
    hashes = list(source.contents)
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    pack = cache.place(hashes[0]).path
    cache.close()  # so that nothing is in the page cache alone
    os.sync()
    before = pack.stat().st_blocks
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.drop(hashes[2:5])
    assert objects_on_disk(cache) == {*hashes[:2], *hashes[5:]}
    assert pack.stat().st_blocks <= before - 3 * 3 * 8
    await cache.drop(hashes)
    assert list((tmp_path / ".packs").iterdir()) == []
    cache.close()


async def test_a_start_gives_back_what_no_index_names(tmp_path: Path) -> None:
    source = MemorySource(*contents(6))
    hashes = list(source.contents)
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    cache._index.close()  # a kill, whose last records were lost in a crash of the host
    cache._store.close()
    os.truncate(tmp_path / ".index", 8 + 3 * 128)
    (tmp_path / ".packs/77").write_bytes(b"from a fetch that was killed")
    cache = ObjectCache(tmp_path, QUOTA)
    assert await cache.sweep() == 0
    assert objects_on_disk(cache) == set(hashes[:3])
    assert (await cache.ensure(source.objects(), source)).fetched == 3
    assert cache.place(hashes[5]).path.name == "78", "no number is used twice"
    assert objects_on_disk(cache) == set(hashes)
    cache.close()


async def test_a_file_beside_a_packed_object_goes(tmp_path: Path) -> None:
    source = MemorySource(*contents(2))
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    cache._store.put(next(iter(source.contents.values())))
    assert await cache.sweep() == 0
    assert objects_on_disk(cache) == set(source.contents)
    cache.close()


async def test_a_cache_of_a_version_without_packs_is_taken_over(tmp_path: Path) -> None:
    source = MemorySource(*contents(3))
    cache = ObjectCache(tmp_path, QUOTA, pack_up_to=0)
    await cache.ensure(source.objects(), source)
    known = dict(cache._held)
    cache.close()
    records = [
        struct.pack("<B3xIQ64s32s", 1, 0, k.size, hash_, k.blake3) for hash_, k in known.items()
    ]
    sums = [zlib.crc32(r[8:], zlib.crc32(r[:4])).to_bytes(4, "little") for r in records]
    whole = [r[:4] + s + r[8:] for r, s in zip(records, sums, strict=True)]
    (tmp_path / ".index").write_bytes(b"SSobj\x01\r\n" + b"".join(whole))
    cache = ObjectCache(tmp_path, QUOTA)
    assert await cache.ensure(source.objects(), source) == (0, 0, 3)
    assert files_of(tmp_path) == set(source.contents)
    cache.close()


async def test_files_the_index_does_not_know_are_checked_when_needed(tmp_path: Path) -> None:
    source = MemorySource(*contents(5))
    hashes = list(source.contents)
    cache = ObjectCache(tmp_path, QUOTA, pack_up_to=0)
    await cache.ensure(source.objects(), source)
    cache.close()
    (tmp_path / ".index").unlink()
    cache = ObjectCache(tmp_path, QUOTA, pack_up_to=0)
    path = cache._store.path(hashes[0])
    path.chmod(0o644)
    path.write_bytes(b"!" * 1000)
    assert await cache.sweep() == 5
    assert cache.used_bytes == 5000
    assert not any(hash_ in cache for hash_ in hashes), "not before they were checked"
    assert (await cache.ensure(source.objects(), source)).fetched == 1
    assert source.asked[-1] == [hashes[0]]
    assert cache.used_bytes == 5000
    cache.close()


async def test_a_sweep_brings_a_cache_under_its_quota(tmp_path: Path) -> None:
    source = MemorySource(*contents(10))
    cache = ObjectCache(tmp_path, QUOTA)
    await cache.ensure(source.objects(), source)
    cache.close()
    cache = ObjectCache(tmp_path, 4000)
    assert await cache.sweep() == 0
    assert cache.used_bytes == 4000
    assert objects_on_disk(cache) == {hash_ for hash_ in source.contents if hash_ in cache}
    cache.close()


async def test_cancelling_at_every_await_leaves_a_cache_that_works(tmp_path: Path) -> None:
    source = MemorySource(*contents(6), b"q" * ((1 << 20) + 5))
    source.piece = 1500
    steps = 0
    while True:
        steps += 1
        cache = ObjectCache(tmp_path / str(steps), QUOTA)
        task = asyncio.create_task(cache.ensure(source.objects(), source))
        for _ in range(steps):
            await asyncio.sleep(0)
        finished = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert cache._claims == []
        assert cache._reserved_bytes == 0
        assert cache._pins == {}
        assert cache.used_bytes == sum(len(source.contents[h]) for h in cache._held)
        assert objects_on_disk(cache) == set(cache._held)
        assert list((cache.directory / ".incoming").iterdir()) == []
        await cache.ensure(source.objects(), source)
        assert objects_on_disk(cache) == set(source.contents)
        cache.close()
        shutil.rmtree(cache.directory)
        if finished or steps > 300:
            break
    assert steps > 5


async def test_one_process_has_the_cache(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, QUOTA)
    with pytest.raises(StoreBusyError):
        ObjectCache(tmp_path, QUOTA)
    cache.close()


async def test_nothing_wanted_is_nothing_asked(tmp_path: Path) -> None:
    source = MemorySource()
    cache = ObjectCache(tmp_path, 0)
    assert await cache.ensure({}, source) == (0, 0, 0)
    assert source.asked == []
    cache.close()
