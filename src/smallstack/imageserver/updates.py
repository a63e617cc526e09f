"""GetImageUpdates: the catalogue as a stream, for replicas and for tools that wait for images.

Every directory, then every image, then an update without a name, then what changes, for ever. One
stream too many is closed at once: nothing in it could say why.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

from smallstack.images.catalogue import ImageCatalogue
from smallstack.images.changes import Follower
from smallstack.outlast import outlast
from smallstack.proto.imageserver import GetFilteredImageUpdatesRequest, ImageUpdate
from smallstack.srpc.connection import Connection
from smallstack.srpc.errors import RpcError
from smallstack.srpc.server import Call, Handler

AT_A_STRETCH: Final = 64
"""Updates that are encoded before others have their turn."""
FOLLOWERS: Final = 256
"""Streams at a time: each remembers every name that it has told."""
USER_FOLLOWERS: Final = 16


class UpdateService:
    """Both methods, over one catalogue."""

    def __init__(self, catalogue: ImageCatalogue) -> None:
        self._catalogue = catalogue
        self._following: Counter[str] = Counter()

    def handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`."""
        return {
            "GetFilteredImageUpdates": self.get_filtered_image_updates,
            "GetImageUpdates": self.get_image_updates,
        }

    async def get_image_updates(self, call: Call) -> None:
        """Of every image."""
        await self._follow(call, ignore_expiring=False)

    async def get_filtered_image_updates(self, call: Call) -> None:
        """Of those that do not expire, if that is wished."""
        request = await call.conn.decode(GetFilteredImageUpdatesRequest)
        await self._follow(call, ignore_expiring=request.ignore_expiring)

    async def _follow(self, call: Call, *, ignore_expiring: bool) -> None:
        user = call.peer.username or call.conn.remote_host
        if self._following.total() >= FOLLOWERS or self._following[user] >= USER_FOLLOWERS:
            raise RpcError(f"more than {FOLLOWERS} streams, or {USER_FOLLOWERS} of one user")
        self._following[user] += 1
        try:
            await self._stream(call, ignore_expiring=ignore_expiring)
        finally:
            self._following[user] -= 1
            self._following += Counter()  # forgets who has none

    async def _stream(self, call: Call, *, ignore_expiring: bool) -> None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        followers: list[Follower] = []

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        try:
            await outlast(
                asyncio.to_thread(self._catalogue.follow, wake, ignore_expiring), followers.append
            )
            await self._tell(call.conn, followers[0])
            call.conn.encode(ImageUpdate())
            await call.conn.flush()
            await call.conn.while_connected(self._go_on(call.conn, followers[0], news))
        finally:
            for follower in followers:
                await outlast(asyncio.to_thread(self._catalogue.leave, follower))

    async def _go_on(self, conn: Connection, follower: Follower, news: asyncio.Event) -> None:
        while True:
            await news.wait()
            news.clear()
            await self._tell(conn, follower)

    async def _tell(self, conn: Connection, follower: Follower) -> None:
        updates = await asyncio.to_thread(self._catalogue.changes, follower)
        for start in range(0, len(updates), AT_A_STRETCH):
            for update in updates[start : start + AT_A_STRETCH]:
                conn.encode(update)
            await conn.flush()
            await asyncio.sleep(0)
