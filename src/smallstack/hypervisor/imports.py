"""Disks that others made, as bricks: sent by a client or fetched from a URL, once.

::

    upload ─┐   hashed, unpacked    raw ───────────────────────┐
            ├──► a file among the ──┤                          ├──► brick, by digest ──► layers
    URL ────┘    bricks             qcow2, VMDK, VDI ► raw ────┘

The same bytes are stored once, whoever sends them. A URL is fetched once at a time, for all creates
that wait for it; it ends with the last of them. Later ones ask its server whether it is still the
same, unless the digest that they give says so. Space is kept for what is being written as for any
volume. A failure, a cancelled create or a kill leaves no part of an image.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from smallstack.daemon.lookups import LookUps
from smallstack.hypervisor.download import Transfer, Validators, open_url
from smallstack.hypervisor.errors import NoStorageError, SpaceError, StorageIndexError
from smallstack.hypervisor.host import GIB, format_bytes
from smallstack.hypervisor.image_url import ImageUrl, ImageUrlError, UrlPolicy, parse_image_url
from smallstack.hypervisor.ledger import Ledger
from smallstack.hypervisor.roots import Roots, full_disk
from smallstack.outlast import outlast
from smallstack.telemetry.errors import describe
from smallstack.volumes.brick import Brick, BrickStore, imported_key
from smallstack.volumes.confined import User
from smallstack.volumes.errors import DiskImageError
from smallstack.volumes.foreign.convert import STEP, convert, flatten
from smallstack.volumes.foreign.formats import DiskFormat
from smallstack.volumes.foreign.intake import Intake
from smallstack.volumes.foreign.sparse import SparseFile

_log = logging.getLogger("smallstack.hypervisor")
MAX_IMAGE: Final = 256 * GIB
"""Bytes of an image, as it comes and unpacked, unless told otherwise."""
MAX_SOURCES: Final = 16
"""URLs that are remembered for a brick."""
MAX_KNOWN: Final = 4096
"""URLs that are remembered whose bricks may be gone."""
_TOLD_STEPS: Final = 10
"""How often at most the progress of one import is told: clients may read only at the end."""
SENT: Final = "sent with the request"
Progress = Callable[[str], Awaitable[None]]
Pieces = AsyncGenerator[bytes, None]
MakeRoom = Callable[[Sequence[int], Path | None], Awaitable[None]]


class Sent(Protocol):
    """Bytes that a client sends behind its request."""

    def pieces(self, count: int) -> Pieces:
        """The next ``count`` of them."""


@dataclass(frozen=True)
class ImageWanted:
    """An image to be imported, by URL, or ``size`` bytes of what is ``sent``."""

    format: DiskFormat | None
    """None: told from the content."""
    user: User
    """Whom a converter runs as."""
    url: ImageUrl | None = None
    sent: Sent | None = None
    size: int = 0
    index: int | None = None
    """Of the volume directory that it must be in."""
    asker: str = ""
    """Who asks for it, by name: what is shared out by user."""
    keep_user: Callable[[], AbstractContextManager[None]] = nullcontext
    """No VM becomes ``user`` as long as this is open: the one it is for may be gone by then."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.url.url if self.url is not None else SENT


@dataclass(frozen=True)
class _Source:
    """What is known of a URL: the brick that it was, and how to tell that it still is."""

    key: str
    validators: Validators
    digests: Mapping[str, str]


@dataclass
class _Shared:
    """A URL that is being fetched for all who wait for it."""

    waiting: int = 0
    text: str = ""
    news: "asyncio.Future[None] | None" = None
    task: "asyncio.Task[Brick] | None" = None
    held: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def tell(self, text: str) -> None:
        """Pass a word on to all who wait."""
        self.text = text
        if self.news is not None and not self.news.done():
            self.news.set_result(None)


class Imports:
    """All imports of this machine."""

    def __init__(
        self,
        roots: Roots,
        ledger: Ledger,
        policy: UrlPolicy | None = None,
        limit: int = MAX_IMAGE,
    ) -> None:
        """Blocks. ``limit``: bytes of the largest image."""
        self.policy = policy or UrlPolicy()
        self._look_ups = LookUps()
        self._limit = limit
        self._roots = roots
        self._ledger = ledger
        self._stores = roots.stores
        self._sources: dict[tuple[str, str], _Source] = {}
        self._shared: dict[object, _Shared] = {}
        for store in self._stores.values():
            self._load(store)

    def check(self, wanted_url: str, sent: int) -> None:
        """Refuse what cannot be imported before anything is done.

        Raises ImageUrlError or DiskImageError.
        """
        if sent > self._limit:
            detail = f"it has {sent} bytes: at most {self._limit} are taken (--max-image-size)"
            raise DiskImageError(name=SENT, detail=detail)
        if not sent:
            self.policy.check(parse_image_url(wanted_url))

    @asynccontextmanager
    async def get(
        self, wanted: ImageWanted, progress: Progress, make_room: MakeRoom
    ) -> AsyncIterator[Brick]:
        """The brick of an image; it stays as long as the context is open, or a layer is over it.

        It need not be durable yet. ``make_room``: see `Agent.make_room`. Raises DiskImageError,
        ImageUrlError, ConverterMissingError, SpaceError, DiskFullError, and what ``sent`` raises.
        """
        if wanted.url is None:
            assert wanted.sent is not None
            async with AsyncExitStack() as held:
                pieces = wanted.sent.pieces(wanted.size)
                work = _Work(self, wanted, wanted.size, progress, make_room, held)
                yield (await work.run(pieces))[0]
            return
        found = self._given(wanted)
        if found is not None:
            with self._roots.holding(found.path):
                yield found
            return
        async with self._together(wanted, progress, make_room) as brick:
            yield brick

    def _given(self, wanted: ImageWanted) -> Brick | None:
        """The brick, if the digest that is given says that what is known of the URL still holds."""
        source = self._sources.get(_name_of(wanted))
        assert wanted.url is not None
        if source is None or not wanted.url.digests:
            return None
        same = all(source.digests.get(k) == value for k, value in wanted.url.digests.items())
        return self.find(source.key, wanted.index) if same else None

    def find(self, key: str, index: int | None) -> Brick | None:
        """An imported brick of this name, in the volume directory that it must be in, if any."""
        stores = list(self._stores.values())
        if index is not None:
            stores = stores[index : index + 1]
        return next((brick for store in stores if (brick := store.imported(key))), None)

    @asynccontextmanager
    async def _together(
        self, wanted: ImageWanted, progress: Progress, make_room: MakeRoom
    ) -> AsyncIterator[Brick]:
        assert wanted.url is not None
        name = (_name_of(wanted), *sorted(wanted.url.digests.items()), wanted.index)
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = _Shared()
            shared.held.enter_context(wanted.keep_user())
            shared.task = asyncio.create_task(self._fetch(wanted, shared, make_room))
        shared.waiting += 1
        task = shared.task
        assert task is not None
        try:
            while not task.done():
                if shared.news is None or shared.news.done():
                    shared.news = asyncio.get_running_loop().create_future()
                await asyncio.wait((task, shared.news), return_when=asyncio.FIRST_COMPLETED)
                if shared.news.done():
                    await progress(shared.text)
            yield await task
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                del self._shared[name]
                task.cancel()
                await outlast(asyncio.wait([task]))
                if not task.cancelled():
                    task.exception()  # seen: whoever waited for it may be gone
                await shared.held.aclose()

    async def _fetch(self, wanted: ImageWanted, shared: _Shared, make_room: MakeRoom) -> Brick:
        url, name = wanted.url, _name_of(wanted)
        assert url is not None
        source = self._sources.get(name)
        known = None
        # With a digest of another kind the bytes have to come again, to be checked.
        if source is not None and not url.digests and self.find(source.key, wanted.index):
            known = source.validators
        names = self._look_ups.of(wanted.asker)
        async with open_url(self.policy, url, known, names=names) as transfer:
            if transfer.unchanged:
                assert source is not None
                brick = self.find(source.key, wanted.index)
                if brick is None:
                    raise ImageUrlError(url=url.url, detail="its brick was removed: try again")
                shared.held.enter_context(self._roots.holding(brick.path))
                return brick
            _check_transfer(wanted, transfer, self._limit)
            length = transfer.length
            work = _Work(self, wanted, length, shared.tell, make_room, shared.held)
            brick, digests = await work.run(transfer.pieces())
        found = _Source(brick.key, transfer.validators, digests)
        self._sources[name] = found
        if len(self._sources) > MAX_KNOWN:
            kept = {n: s for n, s in self._sources.items() if self.find(s.key, None)}
            self._sources = kept
        await asyncio.to_thread(self._note, brick, name)
        return brick

    # What is known of URLs, beside the bricks.

    def _load(self, store: BrickStore) -> None:
        try:
            notes = store.notes()
        except OSError as error:
            _log.warning("%s: what is known of imported images: %s", store.directory, error)
            return
        for key, note in notes.items():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                for entry in json.loads(note)["sources"][:MAX_SOURCES]:
                    validators = Validators(str(entry["etag"]), str(entry["last_modified"]))
                    digests = {str(k): str(v) for k, v in entry["digests"].items()}
                    name = (str(entry["url"]), str(entry["format"]))
                    self._sources[name] = _Source(key, validators, digests)

    def _note(self, brick: Brick, newest: tuple[str, str]) -> None:
        """Write down what is known. Losing it costs a transfer, no more: failures are told of."""
        names = [n for n, s in list(self._sources.items()) if s.key == brick.key and n != newest]
        entries: list[dict[str, Any]] = []
        for name in [newest, *reversed(names)][:MAX_SOURCES]:
            source = self._sources[name]
            entries.append(
                {
                    "url": name[0],
                    "format": name[1],
                    "etag": source.validators.etag,
                    "last_modified": source.validators.last_modified,
                    "digests": dict(source.digests),
                }
            )
        for name in names[: max(0, len(names) + 1 - MAX_SOURCES)]:
            self._sources.pop(name, None)
        try:
            store = self._stores[brick.path.parent.parent]
            store.write_note(brick, json.dumps({"sources": entries}, indent=1).encode())
        except OSError as error:
            _log.warning("%s: where it came from: %s", brick.path, describe(error))

    # Where an image goes.

    async def place(
        self, index: int | None, size: int, make_room: MakeRoom
    ) -> tuple[Path, BrickStore, Path]:
        """A volume directory with room for a file of ``size`` bytes, its bricks, the file's name.

        The room is kept, see `Ledger.expect`. Raises NoStorageError, StorageIndexError, SpaceError.
        """
        directories = list(self._stores)
        if not directories:
            raise NoStorageError
        if index is not None:
            if index >= len(directories):
                raise StorageIndexError(index=index, size=format_bytes(size))
            directories = [directories[index]]
        for attempt in range(2):
            for number, directory in enumerate(directories):
                path = self._stores[directory].temporary()
                try:
                    self._ledger.expect(directory, path, size)
                except SpaceError:
                    if attempt and number == len(directories) - 1:
                        raise
                else:
                    return directory, self._stores[directory], path
            await make_room([size], directories[0] if index is not None else None)
        raise NoStorageError  # pragma: no cover - the loop has ended by then

    async def expect(self, directory: Path, file: Path, size: int, make_room: MakeRoom) -> None:
        """`Ledger.expect`, with room made if there is none."""
        try:
            self._ledger.expect(directory, file, size)
        except SpaceError:
            await make_room([self._ledger.expected_more(file, size)], directory)
            self._ledger.expect(directory, file, size)

    def complete(self, file: Path) -> None:
        """As `Ledger.complete`."""
        self._ledger.complete(file)

    @property
    def limit(self) -> int:
        """Bytes of the largest image."""
        return self._limit

    @property
    def roots(self) -> Roots:
        """Whose bricks they become."""
        return self._roots


class _Work:
    """One import, from the first byte to the brick."""

    def __init__(
        self,
        imports: Imports,
        wanted: ImageWanted,
        length: int | None,
        progress: Progress,
        make_room: MakeRoom,
        held: AsyncExitStack,
    ) -> None:
        """``length``: bytes to come, if that is known. The brick stays as long as ``held`` is."""
        self._imports = imports
        self._wanted = wanted
        self._length = length
        self._progress = progress
        self._make_room = make_room
        self._held = held
        self._told = 0

    async def run(self, pieces: Pieces) -> tuple[Brick, Mapping[str, str]]:
        """The brick, and digests of the image as it came, by name."""
        first = STEP if self._length is None else self._length
        directory, store, path = await self._imports.place(
            self._wanted.index, first, self._make_room
        )
        made: list[Intake] = []
        try:
            with full_disk(path):
                await outlast(asyncio.to_thread(self._open, path), made.append)
                intake = made[0]
                intake.allowed = first
                await self._take(intake, pieces, directory)
                size = await outlast(asyncio.to_thread(intake.finish))
                digests = intake.digests
                key = imported_key(digests["blake3"], intake.form, intake.format.value)
                found = self._imports.find(key, self._wanted.index)
                target = store.directory / key if found is None else found.path
                self._held.enter_context(self._imports.roots.holding(target))
                if found is not None:
                    return found, digests
                if intake.format is DiskFormat.RAW:
                    return await outlast(store.adopt(path, key)), digests
                return await self._convert(intake, size, directory, store, key), digests
        finally:
            for intake in made:
                intake.close()
            await outlast(asyncio.to_thread(path.unlink, missing_ok=True))
            self._imports.complete(path)

    def _open(self, path: Path) -> Intake:
        wanted = self._wanted
        return Intake(
            path,
            wanted.name,
            wanted=wanted.format,
            limit=self._imports.limit,
            digests=wanted.url.digests if wanted.url is not None else None,
        )

    async def _take(self, intake: Intake, pieces: Pieces, directory: Path) -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                written = await outlast(asyncio.to_thread(intake.feed, piece))
                while not written:
                    allowed = intake.waiting + STEP
                    path = intake.file.path
                    await self._imports.expect(directory, path, allowed, self._make_room)
                    intake.allowed = allowed
                    written = await outlast(asyncio.to_thread(intake.pump))
                await self._tell(intake.received)

    async def _tell(self, received: int) -> None:
        """A word now and then; of what a client sends it knows itself."""
        if self._wanted.url is None or not self._length:
            return
        step = received * _TOLD_STEPS // self._length
        if self._told < step < _TOLD_STEPS:
            self._told = step
            done, total = format_bytes(received), format_bytes(self._length)
            await self._progress(f"getting image: {done} of {total}")

    async def _convert(
        self, intake: Intake, size: int, directory: Path, store: BrickStore, key: str
    ) -> Brick:
        """Write the disk of the image that was taken in as a raw one; a brick."""
        await self._progress(f"converting image: {intake.format.value} to raw")
        source, path = intake.file.path, store.temporary()
        made: list[SparseFile] = []
        try:
            await outlast(asyncio.to_thread(SparseFile, path), made.append)
            target = made[0]

            async def grow(taken: int) -> None:
                await self._imports.expect(directory, path, taken, self._make_room)

            if intake.format is DiskFormat.QCOW2:
                await flatten(source, target, self._wanted.name, self._imports.limit, grow)
            else:
                await grow(size)
                user = self._wanted.user
                await convert(source, intake.format, target, size, user, self._wanted.name)
            return await outlast(store.adopt(path, key))
        finally:
            for file in made:
                file.close()
            await outlast(asyncio.to_thread(path.unlink, missing_ok=True))
            self._imports.complete(path)


def _name_of(wanted: ImageWanted) -> tuple[str, str]:
    """What a URL is known by: with the format that its bytes are taken for."""
    assert wanted.url is not None
    return wanted.url.url, wanted.format.value if wanted.format is not None else "auto"


def _check_transfer(wanted: ImageWanted, transfer: Transfer, limit: int) -> None:
    assert wanted.url is not None
    if transfer.length is not None and transfer.length > limit:
        detail = f"it has {transfer.length} bytes: at most {limit} are taken (--max-image-size)"
        raise DiskImageError(name=wanted.name, detail=detail)
    if transfer.length == 0:
        raise DiskImageError(name=wanted.name, detail="it is empty")
    if transfer.encoded and wanted.format is DiskFormat.RAW:
        detail = f"its server compresses it ({transfer.encoded}): say --image-format auto"
        raise ImageUrlError(url=wanted.url.url, detail=detail)
