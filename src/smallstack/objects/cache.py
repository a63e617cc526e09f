"""The Hypervisor's objects: as many as fit, fetched when a create needs them, least used go first.

::

    unknown ──fetched, SHA-512 right──► held ──`drop` (BLAKE3 wrong), evicted──► unknown
    a file the index does not know ───► found ──SHA-512 right, when needed──► held
                                              └─ wrong, when needed──► unknown

An object is checked against its SHA-512 once, when it enters; its BLAKE3 is kept beside it and
checked by whoever reads the bytes. Files enter by rename and the index after them, so a kill
leaves at worst a found file. What is pinned is never evicted. The tables are changed on the
loop's thread alone; files and the index are read and written in threads, and what is between the
two, on its way in or out, is claimed in ``_moving``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from smallstack.objects.errors import (
    CacheFullError,
    FetchError,
    ObjectCorruptError,
    ObjectNotStoredError,
    ObjectSizeError,
)
from smallstack.objects.index import Index, Known
from smallstack.objects.intake import Intake
from smallstack.objects.source import (
    REQUEST,
    STALL_SECONDS,
    ObjectSource,
    ObjectStream,
    check_sizes,
    read_next,
)
from smallstack.objects.store import ObjectStore, Stored
from smallstack.outlast import outlast
from smallstack.telemetry.errors import SmallStackError, describe

_log = logging.getLogger("smallstack.objects")
INDEX: Final = ".index"
BATCH: Final = 1 << 20
"""Bytes handed to a thread at a time; twice this and one object of 1 MiB is what a fetch holds."""


class Ensured(NamedTuple):
    """What one `ObjectCache.ensure` did: objects and bytes fetched, and those that were there."""

    fetched: int
    fetched_bytes: int
    found: int


class ObjectCache:
    """A bounded store of objects.

    ``quota_bytes`` bounds the sum of the objects' sizes, those on their way in included; a peer
    that sends nothing for ``stall_seconds`` is given up. Raises StoreBusyError, StoreError or
    StoreSpaceError.
    """

    def __init__(
        self, directory: Path, quota_bytes: int, *, stall_seconds: float = STALL_SECONDS
    ) -> None:
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.stall_seconds = stall_seconds
        self._store = ObjectStore(directory, with_blake3=True)
        self._index = Index(directory / INDEX)
        self._held = self._index.load()
        self._used_at: dict[bytes, int] = dict.fromkeys(self._held, 0)
        self._used_bytes = sum(known.size for known in self._held.values())
        self._reserved_bytes = 0
        self._pins: dict[object, frozenset[bytes]] = {}
        self._moving: dict[bytes, asyncio.Future[None]] = {}

    def close(self) -> None:
        """Save the order of use and close; nothing may be going on."""
        try:
            self._index.compact(self._by_age())
        except SmallStackError as error:
            _log.warning("the order of use is lost: %s", error)
        self._index.close()
        self._store.close()

    def __contains__(self, hash_: object) -> bool:
        known = self._held.get(hash_) if isinstance(hash_, bytes) else None
        return known is not None and bool(known.blake3)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def used_bytes(self) -> int:
        """Bytes of all objects on disk, those not checked yet included."""
        return self._used_bytes

    def path(self, hash_: bytes) -> Path:
        """The file of an object that is held; raises ObjectNotStoredError."""
        self.blake3(hash_)
        return self._store.path(hash_)

    def size(self, hash_: bytes) -> int | None:
        """Bytes of an object; None when it is not held."""
        return self._held[hash_].size if hash_ in self else None

    def blake3(self, hash_: bytes) -> bytes:
        """The BLAKE3 of an object that is held; raises ObjectNotStoredError."""
        if hash_ not in self:
            raise ObjectNotStoredError(hash=hash_.hex(), directory=self.directory)
        return self._held[hash_].blake3

    @contextmanager
    def pin(self, hashes: Iterable[bytes]) -> Iterator[None]:
        """Keep these from being evicted, whether they are held already or come later.

        It counts as a use of them.
        """
        token, pinned = object(), frozenset(hashes)
        self._pins[token] = pinned
        self._use(pinned)
        try:
            yield
        finally:
            del self._pins[token]

    def drop(self, hash_: bytes) -> None:
        """Forget an object whose file is gone or has other bytes; call it on the loop's thread."""
        if hash_ in self._held and hash_ not in self._moving:
            self._forget(hash_)
            self._remove([hash_])

    async def ensure(self, objects: Mapping[bytes, int], source: ObjectSource) -> Ensured:
        """Have all of ``objects`` (digest to size in bytes), fetching from ``source`` what lacks.

        Objects that another call is fetching are waited for. A transfer that was cut is taken up
        again as long as each attempt brings something. Pin the objects before, and as long as
        they are needed. Raises ObjectMissingError, ObjectCorruptError, ObjectSizeError,
        FetchError, CacheFullError, StoreSpaceError or StoreError; what came whole is kept.
        """
        done: list[Stored] = []
        with self.pin(objects):
            while lacking := await self._lacking(objects, source.name):
                mine = {h: size for h, size in lacking.items() if h not in self._moving}
                if not mine:
                    await asyncio.shield(self._moving[next(iter(lacking))])
                    continue
                before = len(done)
                with self._claim(mine):
                    try:
                        await self._obtain(mine, source, done)
                    except FetchError:
                        if len(done) == before:
                            raise
            self._use(objects.keys())
        return Ensured(len(done), sum(o.size for o in done), len(objects) - len(done))

    async def sweep(self) -> int:
        """Take up files the index does not know, once at start; how many there were.

        They count at once and are checked when they are needed. The quota is enforced after.
        """
        listed = await asyncio.to_thread(lambda: [h for h, _ in self._store.list()])
        new = [h for h in listed if h not in self._held and h not in self._moving]
        with self._claim(new):
            sizes = await asyncio.to_thread(lambda: [self._store.size(h) for h in new])
            for hash_, size in zip(new, sizes, strict=True):
                if size is not None:
                    self._remember(hash_, Known(size, b""), 0)
        gone = self._held.keys() - set(listed) - self._moving.keys()
        for missing in gone:
            self._forget(missing)
        await self._evict()
        await asyncio.to_thread(self._index_drop, list(gone))
        return len(new)

    # What is there, and what is not.

    async def _lacking(self, objects: Mapping[bytes, int], server: str) -> dict[bytes, int]:
        lacking, gone = await asyncio.to_thread(self._inspect, objects, server)
        gone = [h for h in gone if h in self._held and h not in self._moving]
        if gone:
            with self._claim(gone):
                for hash_ in gone:
                    self._forget(hash_)
                await outlast(asyncio.to_thread(self._index_drop, gone))
        return lacking

    def _inspect(
        self, objects: Mapping[bytes, int], server: str
    ) -> tuple[dict[bytes, int], list[bytes]]:
        """What must be had, and what is held but is not on disk as it should be."""
        lacking: dict[bytes, int] = {}
        gone: list[bytes] = []
        for hash_, size in objects.items():
            known = self._held.get(hash_)
            if known is None or not known.blake3:
                lacking[hash_] = size
            elif self._store.size(hash_) != known.size:
                gone.append(hash_)
                lacking[hash_] = size
            elif size != known.size:
                raise ObjectSizeError(hash=hash_.hex(), server=server, found=known.size, size=size)
        return lacking, gone

    # Getting objects.

    async def _obtain(
        self, wanted: Mapping[bytes, int], source: ObjectSource, done: list[Stored]
    ) -> None:
        """Check what lies on disk already, fetch the rest; ``wanted`` is claimed."""
        room = _Room(self)
        try:
            room.take({h: size for h, size in wanted.items() if h not in self._held})
            await self._make_room()
            wrong: dict[bytes, int] = {}

            def looked(result: tuple[list[bytes], list[Stored]]) -> None:
                found, verified = result
                for stored in verified:
                    self._arrived(stored, room)
                wrong.update({h: wanted[h] for h in found if h in self._held and h not in self})
                for hash_ in wrong:
                    self._forget(hash_)

            await outlast(asyncio.to_thread(self._verify_found, wanted), looked)
            room.take(wrong)
            await self._make_room()
            order = [(h, size) for h, size in wanted.items() if h not in self._held]
            for start in range(0, len(order), REQUEST):
                await self._fetch(order[start : start + REQUEST], source, room, done)
        finally:
            room.close()

    def _arrived(self, stored: Stored, room: "_Room") -> None:
        room.give_back(stored.hash)
        known = Known(stored.size, stored.blake3)
        self._remember(stored.hash, known, time.monotonic_ns())

    def _verify_found(self, wanted: Mapping[bytes, int]) -> tuple[list[bytes], list[Stored]]:
        found, verified = [], []
        for hash_ in wanted:
            if self._store.size(hash_) is None:
                if hash_ in self._held:
                    found.append(hash_)
                continue
            found.append(hash_)
            try:
                verified.append(self._store.verify(hash_))
            except (ObjectCorruptError, OSError) as error:
                _log.warning("fetching an object again: %s", describe(error))
                self._store.delete(hash_)
        self._index.add(verified)
        return found, verified

    async def _fetch(
        self,
        order: Sequence[tuple[bytes, int]],
        source: ObjectSource,
        room: "_Room",
        done: list[Stored],
    ) -> None:
        def publish(stored: list[Stored]) -> None:
            for one in stored:
                self._arrived(one, room)
            done.extend(stored)

        try:
            async with source.open_objects([hash_ for hash_, _ in order]) as stream:
                check_sizes(stream, order, source.name)
                intake = Intake(self._store, self._index, order, source.name)
                try:
                    await self._pump(
                        stream, sum(size for _, size in order), intake, publish, source.name
                    )
                finally:
                    intake.abort()
        except OSError as error:
            raise FetchError(server=source.name, detail=describe(error)) from error

    async def _pump(
        self,
        stream: ObjectStream,
        left: int,
        intake: Intake,
        publish: Callable[[list[Stored]], None],
        server: str,
    ) -> None:
        """Read the next bytes while a thread stores the last ones."""
        loop = asyncio.get_running_loop()
        storing: asyncio.Future[list[Stored]] | None = None
        try:
            while left:
                parts = [await self._read(stream, left, server)]
                size = len(parts[0])
                while storing is not None and not storing.done() and size < min(left, BATCH):
                    parts.append(await self._read(stream, left - size, server))
                    size += len(parts[-1])
                left -= size
                if storing is not None:
                    publish(await asyncio.shield(storing))
                    storing = None
                if intake.error is not None:
                    break
                storing = loop.run_in_executor(None, intake.feed, b"".join(parts))
        finally:
            if storing is not None:
                await outlast(storing, publish)
        if intake.error is not None:
            raise intake.error

    async def _read(self, stream: ObjectStream, left: int, server: str) -> bytes:
        return await read_next(stream, BATCH, left, server, self.stall_seconds)

    # Room.

    async def _make_room(self) -> None:
        """Evict for what was counted; raises CacheFullError when that is not enough."""
        if (lacking := await self._evict()) > 0:
            # Another call has pinned meanwhile what was to go.
            raise self._full(lacking)

    async def _evict(self) -> int:
        """Come below the quota: what was not used for longest goes, unless pinned or moving.

        Returns the bytes that are still too many.
        """
        if self._used_bytes + self._reserved_bytes <= self.quota_bytes:
            return 0
        by_age = await asyncio.to_thread(self._by_age)
        pinned = self._pinned()
        excess = self._used_bytes + self._reserved_bytes - self.quota_bytes
        victims = []
        for hash_ in by_age:
            if excess <= 0:
                break
            if hash_ in self._held and hash_ not in pinned and hash_ not in self._moving:
                victims.append(hash_)
                excess -= self._held[hash_].size
        with self._claim(victims):
            for hash_ in victims:
                self._forget(hash_)
            await outlast(asyncio.to_thread(self._remove, victims))
        if self._index.worth_compacting(len(self._held)):
            await asyncio.to_thread(lambda: self._index.compact(self._by_age()))
        return excess

    def _full(self, needed: int) -> CacheFullError:
        in_use = sum(self._held[h].size for h in self._pinned() if h in self._held)
        return CacheFullError(needed=needed, quota=self.quota_bytes, pinned=in_use)

    def _remove(self, hashes: list[bytes]) -> None:
        self._index_drop(hashes)
        for hash_ in hashes:
            self._store.delete(hash_)

    def _index_drop(self, hashes: list[bytes]) -> None:
        try:
            self._index.drop(hashes)
        except SmallStackError as error:
            # The files go all the same, which makes room; `ensure` looks at the file anyway.
            _log.warning("the index of %s is behind: %s", self.directory, error)

    def _by_age(self) -> list[bytes]:
        return sorted(self._used_at, key=lambda hash_: self._used_at.get(hash_, 0))

    def _pinned(self) -> frozenset[bytes]:
        return frozenset().union(*self._pins.values())

    # The tables.

    def _remember(self, hash_: bytes, known: Known, used_at: int) -> None:
        if hash_ in self._held:
            self._forget(hash_)
        self._held[hash_] = known
        self._used_at[hash_] = used_at
        self._used_bytes += known.size

    def _use(self, hashes: Set[bytes]) -> None:
        held = hashes & self._held.keys()
        self._used_at.update(dict.fromkeys(held, time.monotonic_ns()))

    def _forget(self, hash_: bytes) -> None:
        self._used_bytes -= self._held.pop(hash_).size
        del self._used_at[hash_]

    @contextmanager
    def _claim(self, hashes: Iterable[bytes]) -> Iterator[None]:
        """Mark objects as on their way; whoever wants one waits for the end of this."""
        claimed = list(hashes)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moving.update(dict.fromkeys(claimed, over))
        try:
            yield
        finally:
            for hash_ in claimed:
                del self._moving[hash_]
            over.set_result(None)


class _Room:
    """Bytes of objects on their way in, counted before they are there."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._left: dict[bytes, int] = {}

    def take(self, objects: Mapping[bytes, int]) -> None:
        """Count these too; raises CacheFullError when evicting could not make room for them."""
        cache = self._cache
        needed = sum(objects.values())
        full = cache._full(needed)
        if needed and full.pinned + cache._reserved_bytes + needed > cache.quota_bytes:
            raise full
        self._left.update(objects)
        cache._reserved_bytes += needed

    def give_back(self, hash_: bytes) -> None:
        """It is there, or will not come."""
        self._cache._reserved_bytes -= self._left.pop(hash_, 0)

    def close(self) -> None:
        """Give back what is left."""
        for hash_ in list(self._left):
            self.give_back(hash_)
