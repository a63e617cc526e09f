"""GetImageUpdates over real connections: the list, then what changes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path

import pytest

from smallstack.client.imageserver import ImageServerClient
from smallstack.imageserver.updates import USER_FOLLOWERS
from smallstack.proto import imageserver as proto
from smallstack.proto.imageserver import ImageOperation, ImageUpdate
from smallstack.proto.kinds import Time
from smallstack.srpc.errors import ConnectionClosedError
from tests.imageserver.conftest import Serve
from tests.imageserver.test_images import HOUR, image

Updates = AsyncGenerator[ImageUpdate, None]
END = (ImageOperation.ADD_IMAGE, "")


def short(update: ImageUpdate) -> tuple[int, str]:
    if update.directory is not None:
        assert not update.name
        group = update.directory.metadata.owner_group
        return update.operation, update.directory.name + (f" of {group}" if group else "")
    return update.operation, update.name


async def listed(updates: Updates) -> list[tuple[int, str]]:
    found = []
    while (update := short(await anext(updates))) != END:
        found.append(update)
    return found


def in_an_hour() -> Time:
    return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + HOUR)


async def test_the_list_then_what_changes(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.make_directory("b/c", make_all=True)
        await images.make_directory("a")
        await images.add_image("b/c/two", image([]))
        await images.add_image("a/one", image([], expires_at=in_an_hour()))
        for ignore, first in ((False, ["a/one", "b/c/two"]), (True, ["b/c/two"])):
            async with (
                running.as_user("user").connect() as watching,
                aclosing(
                    ImageServerClient(watching).follow_images(ignore_expiring=ignore)
                ) as updates,
            ):
                assert await listed(updates) == [
                    *((ImageOperation.MAKE_DIRECTORY, name) for name in (".", "a", "b", "b/c")),
                    *((ImageOperation.ADD_IMAGE, name) for name in first),
                ]
        async with (
            running.as_user("user").connect() as watching,
            aclosing(ImageServerClient(watching).follow_images()) as updates,
        ):
            await listed(updates)
            await images.make_directory("d")
            assert short(await anext(updates)) == (ImageOperation.MAKE_DIRECTORY, "d")
            await client.request(
                "ImageServer.ChownDirectory",
                proto.ChangeOwnerRequest(directory_name="d", owner_group="ops"),
                proto.ChangeOwnerResponse,
            )
            assert short(await anext(updates)) == (ImageOperation.MAKE_DIRECTORY, "d of ops")
            await images.add_image("d/three", image([]))
            assert short(await anext(updates)) == (ImageOperation.ADD_IMAGE, "d/three")
            await images.change_image_expiration("a/one", Time())
            assert short(await anext(updates)) == (ImageOperation.ADD_IMAGE, "a/one")
            await images.delete_image("a/one")
            assert short(await anext(updates)) == (ImageOperation.DELETE_IMAGE, "a/one")
            await images.make_directory("e")
            assert short(await anext(updates)) == (ImageOperation.MAKE_DIRECTORY, "e")
            request = proto.DeleteDirectoryRequest(directory_name="e")
            await client.request(
                "ImageServer.DeleteDirectory", request, proto.DeleteDirectoryResponse
            )
            assert short(await anext(updates)) == (ImageOperation.DELETE_DIRECTORY, "e")


async def test_a_user_has_so_many_streams(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, AsyncExitStack() as stack:

        async def follow(user: str) -> Updates:
            client = await stack.enter_async_context(running.as_user(user).connect())
            updates = ImageServerClient(client).follow_images()
            await listed(updates)
            return updates

        open_ones = [await follow("user") for _ in range(USER_FOLLOWERS)]
        with pytest.raises(ConnectionClosedError):
            await follow("user")
        await follow("member")
        await open_ones[0].aclose()
        again = None
        while again is None:  # the server learns of the end a little later
            with suppress(ConnectionClosedError):
                again = await follow("user")


async def test_upstreams_own_method_and_a_stranger_to_the_end(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        async with (
            running.as_user("user").connect() as watching,
            watching.raw("ImageServer.GetImageUpdates") as conn,
        ):
            assert short(await conn.decode(ImageUpdate)) == (ImageOperation.MAKE_DIRECTORY, ".")
            assert short(await conn.decode(ImageUpdate)) == END
            await images.add_image("one", image([]))
            assert short(await conn.decode(ImageUpdate)) == (ImageOperation.ADD_IMAGE, "one")
            conn.abort()
        async with running.as_user("user").connect() as watching:
            updates = ImageServerClient(watching).follow_images()
            assert len(await listed(updates)) == 2
            closing = asyncio.ensure_future(anext(updates))
            await running.close(grace=3600)
            with pytest.raises(ConnectionClosedError):
                await closing
        assert running.inside.catalogue._followers == [], "nobody is told any more"
