"""A source of objects for tests, with every fault a peer can have."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from smallstack.objects.errors import FetchError, ObjectMissingError


def digest(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


class MemoryStream:
    def __init__(self, source: "MemorySource", sizes: Sequence[int], data: bytes) -> None:
        self.sizes = sizes
        self._source = source
        self._data = data

    async def read(self, limit: int) -> bytes:
        await self._source.gate.wait()
        if self._source.cut_after is not None:
            left = self._source.cut_after
            limit = min(limit, left)
            if limit == 0:
                self._source.cut_after = self._source.next_cut
                return b""
            self._source.cut_after = left - min(limit, self._source.piece)
        part = self._data[: min(limit, self._source.piece)]
        self._data = self._data[len(part) :]
        self._source.sent += len(part)
        return part


class MemorySource:
    """Objects in memory; ``asked`` is what was requested of it, call by call."""

    name = "memory"

    def __init__(self, *contents: bytes) -> None:
        self.contents = {digest(data): data for data in contents}
        self.asked: list[list[bytes]] = []
        self.sent = 0
        self.piece = 1 << 20
        self.cut_after: int | None = None
        self.next_cut: int | None = None
        self.refuse = False
        self.lie: dict[bytes, int] = {}
        self._news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def objects(self) -> dict[bytes, int]:
        return {hash_: len(data) for hash_, data in self.contents.items()}

    async def until_asked_for(self, count: int) -> None:
        """Returns once ``count`` objects have been asked for."""
        while sum(map(len, self.asked)) < count:
            self._news.clear()
            await self._news.wait()

    def corrupt(self, hash_: bytes) -> None:
        data = self.contents[hash_]
        self.contents[hash_] = bytes([data[0] ^ 1]) + data[1:]

    @asynccontextmanager
    async def open_objects(self, hashes: Sequence[bytes]) -> AsyncIterator[MemoryStream]:
        self.asked.append(list(hashes))
        self._news.set()
        if self.refuse:
            raise FetchError(server=self.name, detail="it is down")
        missing = [hash_ for hash_ in hashes if hash_ not in self.contents]
        if missing:
            raise ObjectMissingError(count=len(missing), hash=missing[0].hex(), server=self.name)
        found = [self.contents[hash_] for hash_ in hashes]
        sizes = [self.lie.get(h, len(data)) for h, data in zip(hashes, found, strict=True)]
        yield MemoryStream(self, sizes, b"".join(found))
