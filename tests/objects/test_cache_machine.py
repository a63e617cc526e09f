"""The cache against a model: any order of fetching, evicting, damage, restarts and kills."""

import asyncio
import hashlib
import os
import shutil
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import (
    CacheFullError,
    FetchError,
    ObjectCorruptError,
    ObjectMissingError,
)
from tests.objects.sources import MemorySource, digest

OBJECTS = [bytes([n]) * (50 + 37 * n) for n in range(16)]
TOTAL = sum(map(len, OBJECTS))
PACKED = 300
"""Half of them go into packs."""
numbers = st.integers(0, len(OBJECTS) - 1)
subsets = st.sets(numbers, min_size=1, max_size=8)


class CacheMachine(RuleBasedStateMachine):
    """``damaged`` is what the machine did to files behind the cache's back."""

    @initialize(quota=st.integers(400, TOTAL))
    def start(self, quota: int) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.quota = quota
        self.runner = asyncio.Runner()
        self.damaged: set[bytes] = set()
        self.pinned: list[tuple[AbstractAsyncContextManager[None], frozenset[bytes]]] = []
        self.open()

    def open(self) -> None:
        self.cache = ObjectCache(self.directory, self.quota, pack_up_to=PACKED)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            self.cache.close()
            shutil.rmtree(self.directory)

    def ensure(self, source: MemorySource, wanted: set[int]) -> Exception | None:
        objects = {digest(OBJECTS[n]): len(OBJECTS[n]) for n in wanted}
        try:
            self.runner.run(self.cache.ensure(objects, source))
        except (CacheFullError, FetchError, ObjectCorruptError, ObjectMissingError) as error:
            return error
        for hash_ in objects:
            assert hash_ in self.cache
        return None

    @rule(wanted=subsets, piece=st.integers(1, 2000))
    def fetch(self, wanted: set[int], piece: int) -> None:
        source = MemorySource(*OBJECTS)
        source.piece = piece
        error = self.ensure(source, wanted)
        in_use = set().union(*(hashes for _, hashes in self.pinned))
        in_use |= {digest(OBJECTS[n]) for n in wanted}
        room = sum(len(data) for data in OBJECTS if digest(data) in in_use)
        if room <= self.quota:
            assert error is None, error
        assert error is None or isinstance(error, CacheFullError)

    @rule(wanted=subsets, bad=numbers)
    def fetch_from_a_server_with_a_corrupt_object(self, wanted: set[int], bad: int) -> None:
        source = MemorySource(*OBJECTS)
        source.corrupt(digest(OBJECTS[bad]))
        held = digest(OBJECTS[bad]) in self.cache
        error = self.ensure(source, wanted)
        if bad not in wanted or held:
            assert error is None or isinstance(error, CacheFullError | ObjectCorruptError)
        else:
            assert (
                error is None
                or digest(OBJECTS[bad]).hex() in str(error)
                or (isinstance(error, CacheFullError))
            )

    @rule(wanted=subsets, gone=numbers)
    def fetch_from_a_server_that_lacks_one(self, wanted: set[int], gone: int) -> None:
        source = MemorySource(*OBJECTS)
        del source.contents[digest(OBJECTS[gone])]
        self.ensure(source, wanted)

    @rule(wanted=subsets, after=st.integers(0, 3000))
    def fetch_from_a_server_that_goes_away(self, wanted: set[int], after: int) -> None:
        source = MemorySource(*OBJECTS)
        source.cut_after = source.next_cut = after
        self.ensure(source, wanted)

    @rule(one=subsets, two=subsets, three=subsets)
    def fetch_three_at_once(self, one: set[int], two: set[int], three: set[int]) -> None:
        source = MemorySource(*OBJECTS)

        async def all_three() -> None:
            sets = [
                {digest(OBJECTS[n]): len(OBJECTS[n]) for n in some} for some in (one, two, three)
            ]
            calls = [self.cache.ensure(objects, source) for objects in sets]
            for result in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, CacheFullError), result

        self.runner.run(all_three())

    @rule(wanted=subsets, steps=st.integers(0, 40))
    def cancel_a_fetch(self, wanted: set[int], steps: int) -> None:
        source = MemorySource(*OBJECTS)
        source.piece = 100

        async def cancelled() -> None:
            objects = {digest(OBJECTS[n]): len(OBJECTS[n]) for n in wanted}
            task = asyncio.create_task(self.cache.ensure(objects, source))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                assert isinstance(task.exception(), CacheFullError | None)

        self.runner.run(cancelled())

    @rule(wanted=subsets)
    def pin(self, wanted: set[int]) -> None:
        if len(self.pinned) < 2:
            hashes = frozenset(digest(OBJECTS[n]) for n in wanted)
            pin = self.cache.pin(hashes)
            self.runner.run(pin.__aenter__())
            self.pinned.append((pin, hashes))

    @rule()
    def unpin(self) -> None:
        while self.pinned:
            pin, _ = self.pinned.pop()
            self.runner.run(pin.__aexit__(None, None, None))

    @rule(number=numbers, kind=st.sampled_from(["gone", "short", "other"]))
    def damage(self, number: int, kind: str) -> None:
        hash_ = digest(OBJECTS[number])
        if hash_ not in self.cache:
            return
        place = self.cache.place(hash_)
        if kind == "gone":
            place.path.unlink(missing_ok=True)
        elif place.path.exists():
            place.path.chmod(0o644)
            if kind == "short":
                os.truncate(place.path, place.offset + place.size // 2)
            else:
                with place.path.open("r+b") as file:
                    file.seek(place.offset)
                    file.write(b"!" * place.size)
        self.find_damage()
        assert hash_ in self.damaged

    def find_damage(self) -> None:
        """What the cache believes to have, and has not: one pack is many objects' damage."""
        for data in OBJECTS:
            if digest(data) in self.cache:
                try:
                    right = b"".join(self.cache.place(digest(data)).read()) == data
                except OSError:
                    right = False
                if not right:
                    self.damaged.add(digest(data))

    @rule()
    def find_and_drop_what_is_damaged(self) -> None:
        """What the reader of the bytes does when their BLAKE3 is wrong."""
        self.runner.run(self.cache.drop(self.damaged))
        self.damaged.clear()

    @rule()
    def restart(self) -> None:
        self.unpin()
        self.cache.close()
        self.open()

    @rule(
        torn=st.integers(0, 300),
        sweep=st.booleans(),
        stray=st.none() | numbers,
        whole=st.booleans(),
    )
    def kill(self, torn: int, sweep: bool, stray: int | None, whole: bool) -> None:
        """The descriptors go, nothing is saved, the index may lack its last bytes."""
        self.unpin()
        self.cache._index.close()
        self.cache._store.close()
        index = self.directory / ".index"
        os.truncate(index, max(0, index.stat().st_size - torn))
        (self.directory / ".incoming/9~").write_bytes(b"half")
        if stray is not None:
            hash_ = digest(OBJECTS[stray])
            path = self.cache._store.path(hash_)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(OBJECTS[stray] if whole else b"!" * len(OBJECTS[stray]))
            (self.damaged.discard if whole else self.damaged.add)(hash_)
        self.open()
        # Without the note that it went, an object seems to be there, and its file, if there is
        # one, is anybody's: `ensure` looks for it, and whoever reads it checks its BLAKE3.
        self.find_damage()
        if sweep or self.cache.used_bytes > self.quota:
            self.runner.run(self.cache.sweep())

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        assert cache.used_bytes == sum(known.size for known in cache._held.values())
        assert cache._reserved_bytes == 0
        assert cache._claims == []
        assert set(cache._used_at) == set(cache._held)
        assert cache.used_bytes <= self.quota
        assert list((self.directory / ".incoming").iterdir()) == []

    @invariant()
    def what_is_held_is_right(self) -> None:
        if not hasattr(self, "cache"):
            return
        for data in OBJECTS:
            hash_ = digest(data)
            if hash_ in self.cache and hash_ not in self.damaged:
                assert b"".join(self.cache.place(hash_).read()) == data
                assert hashlib.sha512(data).digest() == hash_
                assert self.cache.blake3(hash_) == blake3(data).digest()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
