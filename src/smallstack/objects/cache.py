"""The Hypervisor's objects: as many as fit, fetched when a create needs them, least used go first.

::

    unknown ──fetched, SHA-512 right──► held ──`drop` (BLAKE3 wrong), evicted──► unknown
    a file the index does not know ───► found ──SHA-512 right, when needed──► held
                                              └─ wrong, when needed──► unknown

An object is checked against its SHA-512 once, when it enters; its BLAKE3 is kept beside it and
checked by whoever reads the bytes. Small objects lie in packs, large ones have a file each. Bytes
enter first and the index after them, so a kill leaves at worst a found file, whole or in part, or
room in a pack that the next start gives back. What is pinned is never evicted. The tables are
changed on the loop's thread alone, a slice of objects at a stretch; files and the index are read
and written in threads, and what is between the two, on its way in or out, is claimed in
``_claims``.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    Set,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from smallstack.objects.errors import (
    CacheFullError,
    FetchError,
    ObjectCorruptError,
    ObjectNotStoredError,
    ObjectSizeError,
    StoreError,
)
from smallstack.objects.fetch import BATCH, LEAST_BATCH, Entry, Fetch, Times
from smallstack.objects.index import Index, Known
from smallstack.objects.packs import Packs, Spot
from smallstack.objects.place import Place
from smallstack.objects.source import (
    ANSWER_SECONDS,
    STALL_SECONDS,
    ObjectSource,
)
from smallstack.objects.store import IN_MEMORY, ObjectStore, Stored
from smallstack.objects.table import Table
from smallstack.outlast import outlast
from smallstack.telemetry.errors import SmallStackError, describe

_log = logging.getLogger("smallstack.objects")
INDEX: Final = ".index"
SLICE: Final = 256
"""Objects worked on in the tables before others get their turn: half a millisecond."""
LONG_SLICE: Final = 2048
"""As many where the table does most of it, which takes a fraction of the time for each."""
ALONE: Final = 128 << 10
"""Bytes from which an object is checked for longer than all others that come with it."""
NEVER: Final = -(1 << 62)
"""When an object was used that nobody is known to have used; those of earlier runs come after."""
T = TypeVar("T")
Held = Known | Stored
"""What is known of an object that is held: as the index told it, or as it came."""


class Ensured(NamedTuple):
    """What one `ObjectCache.ensure` did: objects and bytes fetched, and those that were there."""

    fetched: int
    fetched_bytes: int
    found: int


class ObjectCache:
    """A bounded store of objects.

    ``quota_bytes`` bounds the sum of the objects' sizes, those on their way in included; a peer
    that sends next to nothing for ``stall_seconds``, or does not answer for ``answer_seconds``, is
    given up. Objects of at most ``pack_up_to`` bytes lie in packs. Raises StoreBusyError,
    StoreError or StoreSpaceError.
    """

    def __init__(
        self,
        directory: Path,
        quota_bytes: int,
        *,
        stall_seconds: float = STALL_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        pack_up_to: int = IN_MEMORY,
    ) -> None:
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.pack_up_to = pack_up_to
        self.stall_seconds = stall_seconds
        self.answer_seconds = answer_seconds
        self._store = ObjectStore(directory, with_blake3=True, flat=True)
        self._index = Index(directory / INDEX)
        known = self._index.load()
        self._packs = self._open_packs(known)
        self._held: Table[Held] = Table(known)
        self._used_at = Table({hash_: n - len(known) for n, hash_ in enumerate(known)})
        self._used_bytes = sum(one.size for one in known.values())
        self._reserved_bytes = 0
        self._pins: dict[object, Collection[bytes]] = {}
        self._fresh: Table[bytes] = Table()
        """The quick sums of what came while something was pinned, as long as anything is."""
        self._claims: list[_Claim] = []
        self._fetches = 0
        self._changes = 0
        """Goes up with every change of what is held or claimed."""

    def _open_packs(self, known: Mapping[bytes, Known]) -> Packs:
        try:
            return Packs(self.directory, (one.pack for one in known.values() if one.pack))
        except OSError as error:
            self._index.close()
            self._store.close()
            raise StoreError(directory=self.directory, detail=describe(error)) from error

    def close(self) -> None:
        """Save the order of use and close; nothing may be going on."""
        try:
            self._index.compact(self._by_age())
        except SmallStackError as error:
            _log.warning("the order of use is lost: %s", error)
        self._index.close()
        self._store.close()

    def __contains__(self, hash_: object) -> bool:
        known = self._held.find(hash_) if isinstance(hash_, bytes) else None
        return known is not None and bool(known.blake3)

    def __len__(self) -> int:
        return len(self._held)

    def has_all(self, hashes: Iterable[bytes]) -> bool:
        """Whether all of these are held; any thread may ask."""
        return all(hash_ in self for hash_ in hashes)

    @property
    def used_bytes(self) -> int:
        """Bytes of all objects on disk, those not checked yet included."""
        return self._used_bytes

    def place(self, hash_: bytes) -> Place:
        """Where the bytes of an object are that is held; raises ObjectNotStoredError."""
        known = self._known(hash_)
        if known.pack:
            return Place(Path(self._packs.path(known.pack)), known.offset, known.size, True)
        return Place(self._store.path(hash_), 0, known.size, False)

    def facts(self, hash_: bytes) -> tuple[bytes, int, int]:
        """What the bytes of an object that is held have to come to, its pack (0: none), where it
        begins in that: see `BrickStore`.

        It is the BLAKE3, or the quick sum of an object that came while something was pinned that is
        so still: a create that has just checked every byte by SHA-512 works out no second digest.
        Raises ObjectNotStoredError.
        """
        known = self._known(hash_)
        return self._fresh.find(hash_) or known.blake3, known.pack, known.offset

    def size(self, hash_: bytes) -> int | None:
        """Bytes of an object; None when it is not held."""
        return self._held[hash_].size if hash_ in self else None

    def blake3(self, hash_: bytes) -> bytes:
        """The BLAKE3 of an object that is held; raises ObjectNotStoredError."""
        return self._known(hash_).blake3

    def _known(self, hash_: bytes) -> Held:
        known = self._held.find(hash_)
        if known is None or not known.blake3:
            raise ObjectNotStoredError(hash=hash_.hex(), directory=self.directory)
        return known

    @asynccontextmanager
    async def pin(self, hashes: Collection[bytes]) -> AsyncIterator[None]:
        """Keep these from being evicted, whether they are held already or come later.

        It counts as a use of them. A mapping or set must not change while it is pinned.
        """
        with self._pinned(hashes):
            await self._use(hashes)
            yield

    async def drop(self, hashes: Iterable[bytes]) -> None:
        """Forget objects whose files are gone or have other bytes; those files go too."""
        for part in _slices(hashes):
            lost = [h for h in part if h in self._held and self._claim_on(h) is None]
            if lost:
                with self._claiming(lost):
                    known = {hash_: self._forget(hash_) for hash_ in lost}
                    await outlast(asyncio.to_thread(self._remove, known))
            await _pause(part)

    async def ensure(self, objects: Mapping[bytes, int], source: ObjectSource) -> Ensured:
        """Have all of ``objects`` (digest to size in bytes), fetching from ``source`` what lacks.

        Objects that another call is fetching are waited for. A transfer that was cut is taken up
        again as long as each attempt brings something. Pin the objects before, and as long as
        they are needed; ``objects`` must not change meanwhile. Raises ObjectMissingError,
        ObjectCorruptError, ObjectSizeError, FetchError, CacheFullError, StoreSpaceError or
        StoreError; what came whole is kept.
        """
        got = _Got()
        with self._pinned(objects):
            while True:
                begun = self._changes
                lacking = await self._lacking(objects, source.name)
                if not lacking.items:
                    await self._use(objects)
                    break
                untouched = begun == self._changes and not self._claims
                with self._claiming() as claim:
                    if untouched:
                        claim.hashes = lacking.hashes
                        mine, others = lacking.items, None
                    else:
                        mine, others = await self._take(lacking.items, claim)
                    before = got.objects
                    if mine:
                        try:
                            await self._obtain(mine, source, got)
                        except FetchError:
                            if got.objects == before:
                                raise
                if not mine and others is not None:
                    await asyncio.shield(others.over)
                # Nobody else had any of it, and all of it came just now, which counts as a use.
                over = untouched and got.objects - before == len(objects)
                await asyncio.to_thread(_free, lacking, mine)
                if over:
                    break
        return Ensured(got.objects, got.size, max(0, len(objects) - got.objects))

    async def sweep(self) -> int:
        """Take up files the index does not know, once at start; how many there were.

        They count at once and are checked when they are needed. The quota is enforced after.
        """
        await asyncio.to_thread(self._reclaim)
        before = await asyncio.to_thread(self._with_files)
        listed = await asyncio.to_thread(lambda: {h for h, _ in self._store.list()})
        new = 0
        for part in _slices(listed):
            unknown = [h for h in part if h not in self._held and self._claim_on(h) is None]
            twice = [h for h in part if (k := self._held.find(h)) is not None and k.pack]
            await asyncio.to_thread(lambda gone: [self._store.delete(h) for h in gone], twice)
            with self._claiming(unknown):
                sizes = await asyncio.to_thread(self._sizes, unknown)
                for hash_, size in zip(unknown, sizes, strict=True):
                    if size is not None:
                        self._remember(hash_, Known(size, b""), NEVER)
                        new += 1
            await _pause(part)
        await self.drop(await asyncio.to_thread(lambda: [h for h in before if h not in listed]))
        await self._evict()
        return new

    def _with_files(self) -> list[bytes]:
        """Objects that have a file of their own."""
        held = ((hash_, self._held.find(hash_)) for hash_ in self._held)
        return [hash_ for hash_, known in held if known is not None and not known.pack]

    def _reclaim(self) -> None:
        """Give back what a kill has left in the packs."""
        held = [self._held.find(hash_) for hash_ in self._held]
        packed = (Spot(k.pack, k.offset, k.size) for k in held if k is not None and k.pack)
        try:
            self._packs.reclaim(packed)
        except OSError as error:
            _log.warning("packs of %s keep what nobody needs: %s", self.directory, describe(error))

    def _sizes(self, hashes: Sequence[bytes]) -> list[int | None]:
        """Bytes of files that were found; empty ones, which a kill leaves, go."""
        sizes = [self._store.size(hash_) for hash_ in hashes]
        for hash_, size in zip(hashes, sizes, strict=True):
            if size is None:
                self._store.delete(hash_)
        return sizes

    # What is there, and what is not.

    async def _lacking(self, objects: Mapping[bytes, int], server: str) -> "_Lacking":
        lacking, gone = await asyncio.to_thread(self._inspect, objects, server)
        await self.drop(gone)
        return lacking

    def _inspect(self, objects: Mapping[bytes, int], server: str) -> tuple["_Lacking", list[bytes]]:
        """What must be had, and what is held but is not on disk as it should be."""
        lacking: list[tuple[bytes, int]] = []
        gone: list[bytes] = []
        packs: dict[int, int] = {}
        for part in _slices(objects.items(), LONG_SLICE):
            missing, found = self._held.apart(part)
            lacking += missing
            for item, known in found:
                hash_, size = item
                if not known.blake3:
                    lacking.append(item)
                elif not self._is_there(hash_, known, packs):
                    gone.append(hash_)
                    lacking.append(item)
                elif size != known.size:
                    raise ObjectSizeError(
                        hash=hash_.hex(), server=server, found=known.size, size=size
                    )
        return _Lacking(lacking, dict(lacking)), gone

    def _is_there(self, hash_: bytes, known: Held, packs: dict[int, int]) -> bool:
        """Whether a file has all bytes of an object, as far as its size tells; ``packs`` keeps
        those of packs."""
        if not known.pack:
            return self._store.size(hash_) == known.size
        if known.pack not in packs:
            packs[known.pack] = self._packs.size(known.pack)
        return known.offset + known.size <= packs[known.pack]

    # Getting objects.

    async def _take(
        self, lacking: Iterable[tuple[bytes, int]], claim: "_Claim"
    ) -> tuple[list[tuple[bytes, int]], "_Claim | None"]:
        """Claim what nobody else has; that, and a claim on something of the rest."""
        mine: list[tuple[bytes, int]] = []
        others: _Claim | None = None
        for part in _slices(lacking):
            for item in part:
                found = self._claim_on(item[0])
                if found is not None:
                    others = found
                elif item[0] not in self:  # it may have come since it was looked for
                    claim.hashes[item[0]] = None
                    mine.append(item)
            await _pause(part)
        return mine, others

    async def _obtain(
        self, wanted: Sequence[tuple[bytes, int]], source: ObjectSource, got: "_Got"
    ) -> None:
        """Check what lies on disk already, fetch the rest; ``wanted`` is claimed."""
        room = _Room(self)
        try:
            # Nobody else changes what is claimed, so a thread may look.
            needed, files = await asyncio.to_thread(self._look_up, wanted)
            await self._reserve(room, needed)
            for part in _slices(files):
                await outlast(self._look(part, room))
                await _pause(part)
            order, wrong = await asyncio.to_thread(self._order, wanted)
            for hash_, _ in wrong:
                self._forget(hash_)
            await self._reserve(room, sum(size for _, size in wrong))
            arrivals = _Arrivals(self, room, got)
            packs = self._packs if self._packs.usable else None
            entry = Entry(self._store, self._index, packs, self.pack_up_to)
            times = Times(self.stall_seconds, self.answer_seconds)
            self._fetches += 1
            try:
                batch = max(LEAST_BATCH, BATCH // self._fetches)
                await Fetch(entry, source, times, arrivals.publish, batch).run(order)
            finally:
                self._fetches -= 1
        finally:
            room.close()

    def _look_up(self, wanted: Iterable[tuple[bytes, int]]) -> tuple[int, list[bytes]]:
        """Bytes that room is to be made for, and the objects of which files may lie there: a small
        one would have been found."""
        needed, files = 0, list[bytes]()
        up_to = self.pack_up_to if self._packs.usable else 0
        for part in _slices(wanted, LONG_SLICE):
            missing, found = self._held.apart(part)
            files += [hash_ for (hash_, _), _ in found]
            needed += sum(size for _, size in missing)
            files += [hash_ for hash_, size in missing if size > up_to]
        return needed, files

    def _order(
        self, wanted: Iterable[tuple[bytes, int]]
    ) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
        """What has to be fetched in the order to ask for it, and those of it that were found lying
        there and are wrong.

        Large ones come first, the largest before all: those with a file of their own are checked
        side by side, while the others come, and those in packs beside others of about their size.
        The rest keeps its order, in which it is likely to be read.
        """
        order, wrong = list[tuple[bytes, int]](), list[tuple[bytes, int]]()
        for part in _slices(wanted, LONG_SLICE):
            missing, found = self._held.apart(part)
            unchecked = [item for item, known in found if not known.blake3]
            order += missing + unchecked
            wrong += unchecked
        large = [item for item in order if item[1] > ALONE]
        large.sort(key=itemgetter(1), reverse=True)
        return large + [item for item in order if item[1] <= ALONE], wrong

    async def _look(self, hashes: Sequence[bytes], room: "_Room") -> None:
        """Check the files that are there of claimed objects."""
        self._arrived(await asyncio.to_thread(self._verify_found, hashes), room)

    def _arrived(self, arrived: list[Stored], room: "_Room") -> int:
        """Enter what is stored and indexed, each once, `LONG_SLICE` at a stretch; their bytes."""
        size = sum(one[1] for one in arrived)
        there_before = 0
        for one, _ in self._held.apart(arrived)[1]:  # found lying there: no room was reserved
            self._forget(one.hash)
            there_before += one.size
        self._held.enter(arrived)
        self._used_at.enter_all(arrived, time.monotonic_ns())
        for one in arrived:
            if one[6]:
                self._fresh[one[0]] = one[6]
        room.give_back(size - there_before)
        self._used_bytes += size
        self._changes += 1
        return size

    def _verify_found(self, hashes: Sequence[bytes]) -> list[Stored]:
        """The files that are there and right; wrong ones go."""
        verified = []
        for hash_ in hashes:
            if self._store.size(hash_) is None:
                continue
            try:
                verified.append(self._store.verify(hash_))
            except (ObjectCorruptError, OSError) as error:
                _log.warning("fetching an object again: %s", describe(error))
                self._store.delete(hash_)
        self._index.add(verified)
        return verified

    # Room.

    async def _reserve(self, room: "_Room", needed: int) -> None:
        """Count what is to come and evict for it; raises CacheFullError if that is not enough."""
        if not needed:
            return
        if self._used_bytes + self._reserved_bytes + needed > self.quota_bytes:
            pinned = await asyncio.to_thread(self._pinned_bytes, list(self._pins.values()))
            if pinned + self._reserved_bytes + needed > self.quota_bytes:
                raise CacheFullError(needed=needed, quota=self.quota_bytes, pinned=pinned)
        room.take(needed)
        if (lacking := await self._evict()) > 0:
            # Another call has pinned meanwhile what was to go.
            pinned = await asyncio.to_thread(self._pinned_bytes, list(self._pins.values()))
            raise CacheFullError(needed=lacking, quota=self.quota_bytes, pinned=pinned)

    async def _evict(self) -> int:
        """Come below the quota: what was not used for longest goes, unless pinned or moving.

        Returns the bytes that are still too many.
        """
        while self._excess > 0:
            pins = list(self._pins.values())
            candidates = await asyncio.to_thread(self._candidates, pins, self._excess)
            gone = 0
            for part in _slices(candidates):
                victims = self._victims(part)
                gone += len(victims)
                with self._claiming(victims):
                    known = {hash_: self._forget(hash_) for hash_ in victims}
                    await outlast(asyncio.to_thread(self._remove, known))
                await _pause(part)
            if not gone:
                break
        if self._index.worth_compacting(len(self._held)):
            await asyncio.to_thread(lambda: self._index.compact(self._by_age()))
        return max(0, self._excess)

    @property
    def _excess(self) -> int:
        return self._used_bytes + self._reserved_bytes - self.quota_bytes

    def _candidates(self, pins: Sequence[Collection[bytes]], excess: int) -> list[bytes]:
        """Objects that may go, least recently used first, until ``excess`` bytes are reached."""
        found: list[bytes] = []
        for hash_ in self._by_age():
            if excess <= 0:
                break
            known = self._held.find(hash_)
            if known is not None and not any(hash_ in pinned for pinned in pins):
                found.append(hash_)
                excess -= known.size
        return found

    def _victims(self, candidates: Iterable[bytes]) -> list[bytes]:
        """Those of the candidates that may still go and have to."""
        excess = self._excess
        victims = []
        for hash_ in candidates:
            if excess <= 0:
                break
            if (
                hash_ in self._held
                and self._claim_on(hash_) is None
                and not any(hash_ in pinned for pinned in self._pins.values())
            ):
                victims.append(hash_)
                excess -= self._held[hash_].size
        return victims

    def _pinned_bytes(self, pins: Sequence[Collection[bytes]]) -> int:
        """Bytes on disk of what is pinned; runs in a thread."""
        known = map(self._held.get, set().union(*pins))
        return sum(one.size for one in known if one is not None)

    def _remove(self, gone: Mapping[bytes, Held]) -> None:
        try:
            self._index.drop(gone)
        except SmallStackError as error:
            # The bytes go all the same, which makes room; `ensure` looks at the file anyway.
            _log.warning("the index of %s is behind: %s", self.directory, error)
        for hash_, known in gone.items():
            if not known.pack:
                self._store.delete(hash_)
        try:
            self._packs.remove(Spot(k.pack, k.offset, k.size) for k in gone.values() if k.pack)
        except OSError as error:
            _log.warning("packs of %s keep what nobody needs: %s", self.directory, describe(error))

    def _by_age(self) -> list[bytes]:
        return sorted(self._used_at, key=lambda hash_: self._used_at.find(hash_) or 0)

    # The tables.

    def _remember(self, hash_: bytes, known: Held, used_at: int) -> None:
        """Enter an object that is not held."""
        self._changes += 1
        self._held[hash_] = known
        self._used_at[hash_] = used_at
        self._used_bytes += known.size

    async def _use(self, hashes: Collection[bytes]) -> None:
        now = time.monotonic_ns()
        for part in _slices(hashes, LONG_SLICE):
            self._used_at.put(part, now)
            await _pause(part, LONG_SLICE)

    def _forget(self, hash_: bytes) -> Held:
        self._changes += 1
        known = self._held.take(hash_)
        self._used_bytes -= known.size
        del self._used_at[hash_]
        if hash_ in self._fresh:
            del self._fresh[hash_]
        return known

    @contextmanager
    def _pinned(self, hashes: Collection[bytes]) -> Iterator[None]:
        token = object()
        self._pins[token] = hashes if isinstance(hashes, Set | Mapping) else frozenset(hashes)
        try:
            yield
        finally:
            del self._pins[token]
            if not self._pins and self._fresh:
                self._fresh = Table()

    @contextmanager
    def _claiming(self, hashes: Iterable[bytes] = ()) -> Iterator["_Claim"]:
        """Mark objects as on their way; whoever wants one waits for the end of this."""
        claim = _Claim(Table.of(hashes), asyncio.get_running_loop().create_future())
        self._changes += 1
        self._claims.append(claim)
        try:
            yield claim
        finally:
            self._claims.remove(claim)
            claim.over.set_result(None)

    def _claim_on(self, hash_: bytes) -> "_Claim | None":
        for claim in self._claims:
            if hash_ in claim.hashes:
                return claim
        return None


class _Lacking(NamedTuple):
    """What an `ensure` has to get: objects with sizes, to go through and to look up."""

    items: list[tuple[bytes, int]]
    hashes: dict[bytes, int]


@dataclass(eq=False, slots=True)
class _Claim:
    """Objects that one call is bringing in or taking out."""

    hashes: MutableMapping[bytes, Any]
    over: asyncio.Future[None]


@dataclass(slots=True)
class _Got:
    """What an `ensure` has fetched."""

    objects: int = 0
    size: int = 0


class _Room:
    """Bytes of objects on their way in, counted before they are there."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._left = 0

    def take(self, size: int) -> None:
        """Count these too."""
        self._left += size
        self._cache._reserved_bytes += size

    def give_back(self, size: int) -> None:
        """They are there, or will not come."""
        self._left -= size
        self._cache._reserved_bytes -= size

    def close(self) -> None:
        """Give back what is left."""
        self.give_back(self._left)


class _Arrivals:
    """Enters what was stored into the tables of a cache."""

    def __init__(self, cache: ObjectCache, room: _Room, got: _Got) -> None:
        self._cache = cache
        self._room = room
        self._got = got

    async def publish(self, storing: Awaitable[Sequence[Stored]]) -> None:
        """Wait for what is being stored and enter it; not to be cut short."""
        for part in _slices(await storing, LONG_SLICE):
            self._got.size += self._cache._arrived(part, self._room)
            self._got.objects += len(part)
            await _pause(part, LONG_SLICE)


def _free(lacking: _Lacking, mine: list[tuple[bytes, int]]) -> None:
    """Give back their memory: milliseconds for 100,000 entries, so not on the loop."""
    lacking.items.clear()
    lacking.hashes.clear()
    mine.clear()


def _slices(items: Iterable[T], most: int = SLICE) -> Iterator[list[T]]:
    """The items, as many at a time as may be worked on at a stretch; `_pause` after each."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, most)):
        yield part


async def _pause(part: Sequence[object], most: int = SLICE) -> None:
    """Others get their turn after a full slice."""
    if len(part) == most:
        await asyncio.sleep(0)
