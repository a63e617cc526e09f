"""Images for creates: found by name on the image server, their trees kept, their objects fetched.

Images are immutable and a deleted name is never used again, so what a name stands for is known for
ever once it was fetched; each create only asks whether the image is still there, over a connection
that was left open. Questions do not wait for one another: a server may answer none of them. An
image that expires may be replaced by another of its name afterwards: such a tree is kept until then
and no longer.

::

    name ──► known? ── CheckImage: still there ───────────────────────────► tree
      │                    └── gone: forget it ──┐
      └── unknown ──► CheckDirectory ── yes ──► FindLatestImage ──► known, or GetImage ──► tree
                          └── no ──► GetImage, waiting up to the timeout ─────────────────► tree
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from smallstack.client.imageserver import ImageServerClient
from smallstack.hypervisor.errors import (
    EmptyDirectoryError,
    ImageMissingError,
    ImageServerError,
    ImageTreeError,
)
from smallstack.identity.credentials import ClientCredentials
from smallstack.identity.renewal import Renewable
from smallstack.images.model import tree_digest
from smallstack.objects.cache import Ensured, ObjectCache
from smallstack.objects.peer import Compression, PeerSource
from smallstack.proto.filesystem import FileSystem
from smallstack.srpc.errors import CallError, ConnectionClosedError, PeerStalledError, TlsError
from smallstack.telemetry.errors import SmallStackError, describe

KEPT_IMAGES: Final = 16
KEPT_BYTES: Final = 64 << 20
"""Bounds of the trees kept in memory."""
KEPT_CONNECTIONS: Final = 4
"""How many connections without a question stay open."""
FOREVER: Final = float("inf")
ASK_SECONDS: Final = 30.0
FETCH_SECONDS: Final = 300.0
"""Bounds of a question, and of the transfer of one tree."""
T = TypeVar("T")


@dataclass(frozen=True)
class KnownImage:
    """An image as a create needs it."""

    name: str
    tree: FileSystem
    digest: bytes
    """BLAKE3 of the tree: its inodes, names and the digests of its objects."""
    until: float
    """Unix seconds at which the image may expire."""

    @property
    def size(self) -> int:
        """Bytes of memory that the tree takes."""
        return len(self.tree.inodes) + len(self.tree.entries) + len(self.tree.blob)


class Images:
    """The image server as the agent uses it."""

    def __init__(
        self,
        address: str,
        credentials: ClientCredentials | Renewable[ClientCredentials] | None,
        cache: ObjectCache,
        compression: Compression = "auto",
    ) -> None:
        """``address`` is ``host:port``; without credentials in plain text."""
        self.address = address
        self._credentials = credentials
        self._cache = cache
        self._source = PeerSource.dialling(address, credentials, compression)
        self._known: OrderedDict[str, KnownImage] = OrderedDict()
        self._idle: list[ImageServerClient] = []
        self._fetching: dict[str, asyncio.Task[KnownImage | None]] = {}

    async def find(
        self,
        name: str,
        timeout_ns: int = 0,
        waiting: Callable[[], Awaitable[None]] | None = None,
    ) -> KnownImage:
        """The image of that name, or the latest one of the directory of that name.

        ``timeout_ns``: how long to wait for an image that is not there yet; ``waiting`` is called
        before. Raises ImageServerError, ImageMissingError, EmptyDirectoryError or ImageTreeError.
        """
        name = name.strip("/")
        if name in self._known:
            if await self._ask_exists(name) and (known := self._recall(name)) is not None:
                return known
            self._known.pop(name, None)
        latest = await self._ask_latest(name)
        if latest is not None:
            return self._recall(latest) or await self._fetch(latest, 0)
        if timeout_ns > 0 and waiting is not None and not await self._ask_exists(name):
            await waiting()
        return await self._fetch(name, timeout_ns)

    async def fetch(self, objects: Mapping[bytes, int]) -> Ensured:
        """Have these objects in the cache; pin them before.

        Raises what `ObjectCache.ensure` raises.
        """
        return await self._cache.ensure(objects, self._source)

    async def close(self) -> None:
        """Hang up."""
        for task in self._fetching.values():
            task.cancel()
        while self._idle:
            await self._idle.pop().close()

    def _recall(self, name: str) -> KnownImage | None:
        known = self._known.get(name)
        if known is None or known.until <= time.time():
            return None
        self._known.move_to_end(name)
        return known

    def _keep(self, image: KnownImage) -> None:
        self._known[image.name] = image
        self._known.move_to_end(image.name)
        while len(self._known) > KEPT_IMAGES or (
            len(self._known) > 1 and sum(k.size for k in self._known.values()) > KEPT_BYTES
        ):
            self._known.popitem(last=False)

    async def _ask_exists(self, name: str) -> bool:
        return await self._ask(lambda client: client.check_image(name))

    async def _ask_latest(self, name: str) -> str | None:
        """The latest image of a directory; None when ``name`` is no directory."""

        async def question(client: ImageServerClient) -> str | None:
            if not await client.check_directory(name):
                return None
            return await client.find_latest_image(name)

        latest = await self._ask(question)
        if latest == "":
            raise EmptyDirectoryError(name=name)
        return latest

    async def _ask(self, question: Callable[[ImageServerClient], Awaitable[T]]) -> T:
        """Ask over an idle connection; over a fresh one when there is none, or it went stale."""
        with _Explained(self.address):
            async with asyncio.timeout(ASK_SECONDS):
                return await self._ask_in_time(question)

    async def _ask_in_time(self, question: Callable[[ImageServerClient], Awaitable[T]]) -> T:
        if self._idle:
            try:
                return await self._ask_over(self._idle.pop(), question)
            except CallError:
                raise
            except (ConnectionClosedError, PeerStalledError, TlsError):
                pass
        return await self._ask_over(await self._dial(), question)

    async def _ask_over(
        self, client: ImageServerClient, question: Callable[[ImageServerClient], Awaitable[T]]
    ) -> T:
        usable = False
        try:
            answer = await question(client)
            usable = True
        except CallError:
            usable = True
            raise
        finally:
            if usable and len(self._idle) < KEPT_CONNECTIONS:
                self._idle.append(client)
            else:
                client.client.conn.abort()
        return answer

    async def _dial(self) -> ImageServerClient:
        return await ImageServerClient.connect(self.address, self._credentials, move_local=True)

    async def _fetch(self, name: str, timeout_ns: int) -> KnownImage:
        """Fetch a tree, on a connection that nobody else uses meanwhile: it may be long in coming.

        Callers that want the same image share one transfer, unless they are ready to wait.
        """
        if timeout_ns > 0:
            image = await self._fetch_now(name, timeout_ns)
        else:
            task = self._fetching.get(name)
            if task is None:
                task = asyncio.create_task(self._fetch_now(name, 0))
                self._fetching[name] = task
                task.add_done_callback(lambda done: self._fetched(name, done))
            image = await asyncio.shield(task)
        if image is None:
            raise ImageMissingError(name=name, server=self.address)
        return image

    def _fetched(self, name: str, task: "asyncio.Task[KnownImage | None]") -> None:
        del self._fetching[name]
        if not task.cancelled():
            task.exception()  # seen: callers may have gone away

    async def _fetch_now(self, name: str, timeout_ns: int) -> KnownImage | None:
        with _Explained(self.address):
            async with asyncio.timeout(timeout_ns / 1e9 + FETCH_SECONDS):
                image = await self._ask_in_time(lambda client: client.get_image(name, timeout_ns))
        if image is None:
            return None
        tree = image.file_system
        if tree is None or len(tree) == 0:
            raise ImageTreeError(name=name, detail="it has no file system")
        digest = await asyncio.to_thread(tree_digest, tree)
        expires = image.expires_at
        until = FOREVER if expires.is_zero() else expires.nanoseconds_since_epoch / 1e9
        known = KnownImage(name, tree, digest, until)
        self._keep(known)
        return known


class _Explained:
    """Makes an ImageServerError of whatever goes wrong with a connection."""

    def __init__(self, server: str) -> None:
        self._server = server

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ConnectionClosedError, PeerStalledError)):
            detail = f"it went away in the middle of an answer ({describe(error)})"
            raise ImageServerError(server=self._server, detail=detail) from error
        if isinstance(error, TimeoutError):
            raise ImageServerError(server=self._server, detail="it does not answer") from error
        if isinstance(error, OSError) or (
            isinstance(error, SmallStackError)
            and type(error).__module__.startswith("smallstack.srpc")
        ):
            raise ImageServerError(server=self._server, detail=describe(error)) from error
