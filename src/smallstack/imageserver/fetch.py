"""Objects from a web server into the store: their digests are known before, so what comes is right.

Connections are used again, and so many objects come at a time; the first failure ends the others.
A server that sends nothing for STALL_SECONDS is given up.
"""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from smallstack.daemon.hosts import Allowed, HostPolicy
from smallstack.daemon.lookups import NameLookUpError
from smallstack.imageserver.errors import FetchError
from smallstack.imageserver.references import References
from smallstack.objects.errors import ObjectCorruptError
from smallstack.objects.store import Incoming, ObjectStore
from smallstack.outlast import outlast
from smallstack.proto.kinds import Hash
from smallstack.telemetry.errors import SmallStackError, describe

AT_A_TIME: Final = 16
"""Objects of one import under way."""
STALL_SECONDS: Final = 60.0
"""How long BLOCK bytes may take."""
CONNECT_SECONDS: Final = 30.0
BLOCK: Final = 64 * 1024
PIECE: Final = 1 << 20
"""Bytes that go to a thread at a time."""
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Wanted(NamedTuple):
    """One object: its digest, its bytes if that is known, its URL; ``most`` bytes are taken."""

    hash: Hash
    size: int | None
    url: str
    most: int = 1 << 62


class Fetcher:
    """One import; an asynchronous context manager. What it holds is released by its user."""

    def __init__(
        self,
        store: ObjectStore,
        references: References,
        policy: HostPolicy,
        names: AbstractResolver,
    ) -> None:
        self.objects_added = 0
        self.bytes_added = 0
        self.held: set[Hash] = set()
        """Objects that nobody may delete until they are released."""
        self._store = store
        self._references = references
        self._policy = policy
        connector = aiohttp.TCPConnector(resolver=Allowed(policy, names), limit=AT_A_TIME)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=BLOCK,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS
            ),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    def hold(self, hash_: Hash) -> None:
        """Keep an object, also one that is not there yet; any thread may call it."""
        if hash_ not in self.held:
            self.held.add(hash_)
            self._references.hold([hash_])

    async def fetch(
        self, wanted: Iterable[Wanted], failed: Callable[[int], None] | None = None
    ) -> None:
        """Bring the objects that the store lacks; ``failed`` hears the index of the first failure.

        Raises FetchError, ObjectCorruptError, StoreError and their like.
        """
        coming = iter(enumerate(wanted))

        async def work() -> None:
            for index, one in coming:
                try:
                    await self._one(one)
                except SmallStackError:
                    if failed is not None:
                        failed(index)
                    raise

        workers = [asyncio.ensure_future(work()) for _ in range(AT_A_TIME)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _one(self, wanted: Wanted) -> None:
        self.hold(wanted.hash)
        found = await asyncio.to_thread(self._store.size, wanted.hash)
        if found is None:
            await self._get(wanted)
        elif wanted.size is not None and found != wanted.size:
            digits = wanted.hash.hex()
            raise FetchError(
                url=wanted.url, detail=f"existing size: {found} != {wanted.size} for: {digits}"
            )

    async def _get(self, wanted: Wanted) -> None:
        response = await self._ask(wanted.url)
        try:
            size = response.content_length
            if response.status != 200:
                raise FetchError(
                    url=wanted.url, detail=f"{response.status} {response.reason or ''}".rstrip()
                )
            if size is None:
                raise FetchError(url=wanted.url, detail="its server does not say how long it is")
            if not size:
                raise FetchError(url=wanted.url, detail="it is empty")
            if size > wanted.most:
                raise FetchError(url=wanted.url, detail=f"{size} bytes: at most {wanted.most}")
            if wanted.size not in {None, size}:
                raise FetchError(url=wanted.url, detail=f"{size} bytes, not {wanted.size}")
            incoming = self._store.incoming(size, wanted.hash, wanted.url, self.hold)
            try:
                await self._take(wanted.url, response, incoming)
            finally:
                await outlast(asyncio.to_thread(incoming.abort))
        finally:
            response.release()

    async def _take(self, url: str, response: aiohttp.ClientResponse, incoming: Incoming) -> None:
        left = response.content_length or 0
        while left:
            data = await self._piece(url, response, min(left, PIECE))
            left -= len(data)
            await outlast(asyncio.to_thread(incoming.write, data))
        try:
            stored = await outlast(asyncio.to_thread(incoming.finish))
        except ObjectCorruptError as error:
            detail = f"its SHA-512 is another one than was asked for: {error.found}"
            raise FetchError(url=url, detail=detail) from error
        if stored.added:
            self.objects_added += 1
            self.bytes_added += stored.size

    async def _piece(self, url: str, response: aiohttp.ClientResponse, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        try:
            while left:
                async with asyncio.timeout(STALL_SECONDS):
                    part = await response.content.readexactly(min(left, BLOCK))
                parts.append(part)
                left -= len(part)
        except TimeoutError:
            detail = f"nothing came for {STALL_SECONDS:g} s"
            raise FetchError(url=url, detail=detail) from None
        except (asyncio.IncompleteReadError, aiohttp.ClientPayloadError):
            raise FetchError(url=url, detail="it was cut off") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError(url=url, detail=describe(error)) from error
        return b"".join(parts)

    async def _ask(self, url: str) -> aiohttp.ClientResponse:
        """The answer that is no redirection; every host on the way has to be allowed."""
        there = URL(url, encoded=True)
        for _ in range(MAX_REDIRECTS + 1):
            if there.scheme not in {"http", "https"} or not there.host:
                raise FetchError(url=url, detail=f"it leads to {there.scheme or 'nowhere'}:")
            if why_not := self._policy.why_not(there.host):
                raise FetchError(url=url, detail=why_not)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    response = await self._session.get(
                        there, headers={"Accept-Encoding": "identity"}, allow_redirects=False
                    )
            except TimeoutError:
                raise FetchError(url=url, detail=f"{there.host} does not answer") from None
            except (aiohttp.ClientError, NameLookUpError, OSError, ValueError) as error:
                raise FetchError(url=url, detail=describe(error)) from error
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.release()
            try:
                there = there.join(URL(location, encoded=True))
            except ValueError as error:
                raise FetchError(url=url, detail=f"redirected: {describe(error)}") from None
        raise FetchError(url=url, detail=f"it redirects more than {MAX_REDIRECTS} times")
