"""Imports: objects and whole trees from a web server that has them by digest.

::

    <base>/<SHA-512>              ImportObjects: an object
    <base>/tree/<SHA-512>         ImportTree: a directory, see `smallstack.images.tree_text`
    <base>/blob/<SHA-512>         a file, or the target of a symlink

Everything is named by its digest, the root directory too, so a server can send nothing but what was
asked for. A tree is walked a level at a time, what a level needs at the same time.
"""

import asyncio
import logging
import stat
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from smallstack.daemon.hosts import HostPolicy
from smallstack.daemon.lookups import LookUps
from smallstack.images.errors import RefusedError
from smallstack.images.names import ROOT, check_directory
from smallstack.images.tree_text import MAX_TEXT, Entry, EntryType, parse_tree_text
from smallstack.imageserver.errors import ImportTreeError
from smallstack.imageserver.fetch import Fetcher, Wanted
from smallstack.imageserver.references import HOLD_SECONDS, References
from smallstack.imageserver.service import ImageService, has_passed
from smallstack.objects.store import ObjectStore
from smallstack.outlast import outlast
from smallstack.proto import imageserver as proto
from smallstack.proto import objectserver as objects
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.image import Image
from smallstack.proto.kinds import HASH_SIZE, Hash, Time
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError

IMPORTS: Final = 4
"""Imports at a time; more wait."""
MAX_INODES: Final = 1 << 20
MAX_DEPTH: Final = 2048
"""Directories within each other: no path has more."""
MAX_TARGET: Final = 4095
MAX_URL: Final = 4096
_log = logging.getLogger("smallstack.imageserver")


class ImportService:
    """Both methods, over one image server's parts."""

    def __init__(
        self,
        images: ImageService,
        store: ObjectStore,
        references: References,
        policy: HostPolicy,
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        """Imported objects are held for ``hold_seconds`` after the call, as added ones are."""
        self._images = images
        self._store = store
        self._references = references
        self._policy = policy
        self._hold_seconds = hold_seconds
        self._slots = asyncio.Semaphore(IMPORTS)
        self._names = LookUps()

    def image_handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`, of the ImageServer service."""
        return {"ImportTree": self.import_tree}

    def object_handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`, of the ObjectServer service."""
        return {"ImportObjects": self.import_objects}

    async def import_objects(
        self, call: Call, request: objects.ImportObjectsRequest
    ) -> objects.ImportObjectsResponse:
        """Fetch the objects that the store lacks; those that came before a failure stay."""
        reply = objects.ImportObjectsResponse()

        def failed(index: int) -> None:
            reply.failed_index = index

        async def work() -> None:
            base = _base(request.base_remote_url)
            async with self._fetcher(call) as fetcher:
                try:
                    await fetcher.fetch(_wanted(base, request), failed)
                finally:
                    reply.objects_added = fetcher.objects_added
                    reply.bytes_added = fetcher.bytes_added

        try:
            await call.conn.while_connected(work())
        except (ConnectionClosedError, PeerStalledError):
            raise
        except SmallStackError as error:
            call.failed(error)
            reply.error = str(error)
        _log.info(
            "ImportObjects(%s) by %s: %d of %d objects are new%s",
            request.base_remote_url[:MAX_URL],
            call.peer,
            reply.objects_added,
            len(request.hashes),
            f": {reply.error}" if reply.error else "",
        )
        return reply

    async def import_tree(
        self, call: Call, request: proto.ImportTreeRequest
    ) -> proto.ImportTreeResponse:
        """Make a sparse image of a tree, named by its digest."""
        reply = proto.ImportTreeResponse()
        try:
            await call.conn.while_connected(self._import_tree(call, request, reply))
        except (ConnectionClosedError, PeerStalledError):
            raise
        except SmallStackError as error:
            call.failed(error)
            reply.error = str(error)
        return reply

    async def _import_tree(
        self, call: Call, request: proto.ImportTreeRequest, reply: proto.ImportTreeResponse
    ) -> None:
        base, root = _tree_url(request.tree_url)
        name = self._name(request.directory_name, root)
        if not request.expires_at.is_zero() and has_passed(request.expires_at):
            raise RefusedError(text="image has already expired")
        async with self._fetcher(call) as fetcher:
            begun = time.monotonic_ns()
            walk = _Walk(self._store, fetcher, base)
            tree = await walk.run(root)
            reply.tree_objects_added = fetcher.objects_added
            reply.tree_bytes_added = fetcher.bytes_added
            reply.trees_download_time = time.monotonic_ns() - begun
            begun = time.monotonic_ns()
            await fetcher.fetch(
                Wanted(hash_, size, f"{base}/blob/{hash_.hex()}")
                for hash_, size in walk.files.items()
            )
            reply.file_objects_added = fetcher.objects_added - reply.tree_objects_added
            reply.file_bytes_added = fetcher.bytes_added - reply.tree_bytes_added
            reply.files_download_time = time.monotonic_ns() - begun
            image = Image(
                created_by=call.peer.username,
                created_on=Time.now(),
                expires_at=request.expires_at,
                file_system=tree,
            )
            await outlast(
                asyncio.to_thread(self._images.put, name, image),
                lambda _: self._images.appeared(name),
            )
        _log.info("ImportTree(%s) by %s: %s", request.tree_url, call.peer, name)
        reply.image_name = name

    def _name(self, directory: str, root: Hash) -> str:
        directory = check_directory(directory)
        if self._images.catalogue.metadata(directory) is None:
            raise RefusedError(text=f"directory: {directory} does not exist")
        name = root.hex() if directory == ROOT else f"{directory}/{root.hex()}"
        if name in self._images.catalogue:
            raise RefusedError(text=f"image: {name} already exists")
        return name

    @asynccontextmanager
    async def _fetcher(self, call: Call) -> AsyncIterator[Fetcher]:
        names = self._names.of(call.peer.username)
        async with (
            self._slots,
            Fetcher(self._store, self._references, self._policy, names) as fetcher,
        ):
            try:
                yield fetcher
            finally:
                asyncio.get_running_loop().call_later(
                    self._hold_seconds, self._references.release, fetcher.held
                )


class _Directory(NamedTuple):
    """One that was named and not read yet, with its inode's index."""

    inode: int
    hash: Hash
    size: int | None


class _Walk:
    """Reads a tree into a file system; ``files`` are its objects with their sizes."""

    def __init__(self, store: ObjectStore, fetcher: Fetcher, base: str) -> None:
        self.files: dict[Hash, int] = {}
        self._store = store
        self._fetcher = fetcher
        self._base = base
        self._builder = FileSystemBuilder()
        self._mtime_ns = time.time_ns()
        self._inodes = 1

    async def run(self, root: Hash) -> FileSystem:
        """Walk it all. Raises ImportTreeError, TreeTextError, TreeError, FetchError."""
        level = [_Directory(0, root, None)]
        for _ in range(MAX_DEPTH):
            if not level:
                return await asyncio.to_thread(self._builder.build)
            await self._fetcher.fetch(
                Wanted(hash_, size, f"{self._base}/tree/{hash_.hex()}", MAX_TEXT)
                for hash_, size in {one.hash: one.size for one in level}.items()
            )
            below: list[_Directory] = []
            for directory in level:
                entries = await asyncio.to_thread(self._read, directory)
                targets = await self._targets(entries)
                below += await asyncio.to_thread(self._add, directory.inode, entries, targets)
            level = below
        raise self._error(f"it has more than {MAX_DEPTH} levels")

    def _error(self, detail: str) -> ImportTreeError:
        return ImportTreeError(url=self._base, detail=detail)

    def _read(self, directory: _Directory) -> list[Entry]:
        with self._store.open(directory.hash) as file:
            text = file.read(MAX_TEXT + 1)
        entries = parse_tree_text(text)
        self._inodes += len(entries)
        if self._inodes > MAX_INODES:
            raise self._error(f"it has more than {MAX_INODES} inodes")
        return entries

    async def _targets(self, entries: Sequence[Entry]) -> dict[Hash, bytes]:
        links = {one.hash: one.size for one in entries if one.type is EntryType.SYMLINK}
        if not links:
            return {}
        if 0 in links.values():
            raise self._error("it has a symlink without a target")
        await self._fetcher.fetch(
            Wanted(hash_, size, f"{self._base}/blob/{hash_.hex()}", MAX_TARGET)
            for hash_, size in links.items()
        )
        return await asyncio.to_thread(self._contents, list(links))

    def _contents(self, hashes: Sequence[Hash]) -> dict[Hash, bytes]:
        found = {}
        for hash_ in hashes:
            with self._store.open(hash_) as file:
                found[hash_] = file.read(MAX_TARGET + 1)
        return found

    def _add(
        self, directory: int, entries: Sequence[Entry], targets: Mapping[Hash, bytes]
    ) -> list[_Directory]:
        below = []
        for entry in entries:
            uid, gid = entry.uid, entry.gid
            if entry.type is EntryType.DIRECTORY:
                mode = stat.S_IFDIR | entry.permissions
                index = self._builder.add(mode=mode, uid=uid, gid=gid)
                if entry.size:
                    below.append(_Directory(index, entry.hash, entry.size))
            elif entry.type is EntryType.SYMLINK:
                target = targets[entry.hash]
                mode = stat.S_IFLNK | 0o777
                index = self._builder.add(mode=mode, target=target, uid=uid, gid=gid)
            else:
                index = self._builder.add(
                    mode=stat.S_IFREG | entry.permissions,
                    size=entry.size,
                    hash=entry.hash,
                    mtime_ns=self._mtime_ns,
                    uid=uid,
                    gid=gid,
                )
                if entry.size and self.files.setdefault(entry.hash, entry.size) != entry.size:
                    raise self._error(f"{entry.hash.hex()} has two sizes")
            self._builder.link(directory, entry.name, index)
        return below


def _wanted(base: str, request: objects.ImportObjectsRequest) -> Iterator[Wanted]:
    sizes = request.object_sizes
    for index, hash_ in enumerate(request.hashes):
        size = sizes[index] if index < len(sizes) else None
        yield Wanted(hash_, size, f"{base}/{hash_.hex()}")


def _base(url: str) -> str:
    """A URL that others begin with, without a slash at its end."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or len(url) > MAX_URL or parts.query or parts.fragment or not url.isascii():
        raise ImportTreeError(url=url[:100], detail="write http://HOST/… or https://HOST/…")
    return url.rstrip("/")


def _tree_url(url: str) -> tuple[str, Hash]:
    """The base of a tree's URL, and the digest of its root."""
    above, _, digits = _base(url).rpartition("/")
    base, _, word = above.rpartition("/")
    try:
        root = Hash(bytes.fromhex(digits))
    except ValueError:
        root = Hash.zero
    if word != "tree" or root == Hash.zero or len(digits) != 2 * HASH_SIZE:
        raise ImportTreeError(url=url[:100], detail="write …/tree/ and the SHA-512 of its root")
    return base, root
