"""The ImageServer service as its clients see it."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from smallstack.client.errors import ServiceError
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.proto import imageserver as proto
from smallstack.proto.filesystem import FileSystemBuilder, RegularInode
from smallstack.proto.image import Annotation, Image
from smallstack.proto.kinds import Hash, Time
from smallstack.srpc.client import Client
from smallstack.srpc.errors import AccessDeniedError, CallError
from tests.imageserver.conftest import Running, Serve

NO_ACCESS = "no access to image: neither you nor a group of yours own it"

HOUR = 3600 * 10**9


def contents(count: int) -> list[bytes]:
    return [b"content %d" % number for number in range(count)]


def image(data: list[bytes], **fields: Any) -> Image:
    builder = FileSystemBuilder(mtime_ns=7)
    for number, content in enumerate(data):
        inode = builder.add(
            mode=0o100644,
            size=len(content),
            hash=hashlib.sha512(content).digest(),
            mtime_ns=number,
            xattrs={b"user.n": b"%d" % number},
        )
        builder.link(0, b"f%d" % number, inode)
    link = builder.add(mode=0o120777, target=b"f0", mtime_ns=9)
    builder.link(0, b"link", link)
    return Image(file_system=builder.build(), **fields)


async def upload(client: Client, data: list[bytes]) -> None:
    await ObjectServerClient(client).add_objects([NewObject(content) for content in data])


async def refused(work: Awaitable[object]) -> str:
    with pytest.raises((CallError, ServiceError)) as caught:
        await work
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_an_image_there_and_back(serve: Serve, tmp_path: Path) -> None:
    data = contents(50)
    made = image(data, created_by="somebody else", tags={"a": "b"})
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await upload(client, data)
        before = Time.now().nanoseconds_since_epoch
        await images.add_image("one", made)
        assert await images.check_image("one")
        got = await images.get_image("one")
        assert got is not None
        assert got.file_system == made.file_system
        assert got.created_by == "operator", "set by the server"
        created = got.created_on.nanoseconds_since_epoch
        assert before <= created <= Time.now().nanoseconds_since_epoch
        assert got.tags == {"a": "b"}
        bare = await images.get_image("one", ignore_filesystem=True)
        assert bare is not None
        assert bare.file_system is None
        assert await images.list_images() == ["one"]
        assert await images.get_image("two") is None
        assert not await images.check_image("two")
    async with serve(tmp_path) as running, running.operator.connect() as client:
        again = await ImageServerClient(client).get_image("one")
        assert again == got, "the same after a restart"
        objects = ObjectServerClient(client)
        await running_delete_unreferenced(client)
        hashes = [hashlib.sha512(content).digest() for content in data]
        assert await objects.check_objects(hashes) == [len(content) for content in data]


async def running_delete_unreferenced(client: Client) -> None:
    await client.request(
        "ImageServer.DeleteUnreferencedObjects",
        proto.DeleteUnreferencedObjectsRequest(percentage=100),
        proto.DeleteUnreferencedObjectsResponse,
    )


async def test_an_image_whose_maker_is_believed(serve: Serve, tmp_path: Path) -> None:
    made = image([], created_by="somebody else", created_on=Time.from_nanoseconds(7))
    request = proto.AddImageRequest(image_name="one", image=made)
    async with serve(tmp_path) as running:
        async with running.operator.connect() as client:
            method = "ImageServer.AddImageTrusted"
            await client.request(method, request, proto.AddImageResponse)
            got = await ImageServerClient(client).get_image("one")
            assert got is not None
            assert (got.created_by, got.created_on) == ("somebody else", made.created_on)
        async with running.as_user("adder").connect() as client:
            with pytest.raises(AccessDeniedError):
                await client.request(method, request, proto.AddImageResponse)


async def test_all_objects_must_be_there(serve: Serve, tmp_path: Path) -> None:
    data = contents(5)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await upload(client, data[:3])
        text = await refused(images.add_image("one", image(data)))
        assert text.endswith("2 objects are not available")
        await upload(client, data[:4])
        text = await refused(images.add_image("one", image(data)))
        missing = hashlib.sha512(data[4]).hexdigest()
        assert text.endswith(f"object: {missing} is not available")
        notes = Annotation(object=Hash(hashlib.sha512(b"notes").digest()))
        await upload(client, data)
        text = await refused(images.add_image("one", image(data, release_notes=notes)))
        assert "is not available" in text
        await upload(client, [b"notes"])
        await images.add_image("one", image(data, release_notes=notes))
        running.inside.store.delete(hashlib.sha512(data[0]).digest())
        running.inside.store.put(b"x" * 3)
        wrong = image([b"x" * 3])
        assert wrong.file_system is not None
        builder = FileSystemBuilder()
        inode = builder.add(mode=0o100644, size=4, hash=hashlib.sha512(b"x" * 3).digest())
        builder.link(0, b"f", inode)
        text = await refused(images.add_image("two", Image(file_system=builder.build())))
        assert "has 3 bytes, not 4" in text
        assert await images.list_images() == ["one"]


async def test_names_are_checked_and_used_once(serve: Serve, tmp_path: Path) -> None:
    data = contents(2)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await upload(client, data)
        await images.add_image("one", image(data))
        assert (await refused(images.add_image("one", image(data)))).endswith(
            "image already exists"
        )
        assert "leads" not in await refused(images.add_image("../one", image(data)))
        assert "begins with a dot" in await refused(images.add_image(".metadata", image(data)))
        assert "does not exist: make it first" in await refused(
            images.add_image("dir/one", image(data))
        )
        assert (await refused(images.add_image("x", Image()))).endswith("nil file-system")
        await images.delete_image("one")
        assert not await images.check_image("one")
        text = await refused(images.delete_image("one"))
        assert text.endswith("image does not exist: check `imagetool list`")
        text = await refused(images.add_image("one", image(data)))
        assert text.endswith("cannot add previously deleted image: one")
        reply = client.request(
            "ImageServer.CheckImage", proto.CheckImageRequest(), proto.CheckImageResponse
        )
        assert not (await reply).image_exists, "the connection serves on after refusals"


async def test_concurrent_adds_of_one_name(serve: Serve, tmp_path: Path) -> None:
    data = contents(3)
    async with serve(tmp_path) as running:

        async def add() -> str:
            async with running.operator.connect() as client:
                await upload(client, data)
                try:
                    await ImageServerClient(client).add_image("one", image(data))
                except CallError as error:
                    return str(error)
                return ""

        results = await asyncio.gather(*(add() for _ in range(8)))
        assert sorted(results)[0] == ""
        assert all("already" in result for result in sorted(results)[1:])
        assert len(running.inside.references) == 3


class Watched:
    """An asynchronous method, with events for its start and its end."""

    def __init__(self, owner: object, name: str) -> None:
        self.began, self.ended = asyncio.Event(), asyncio.Event()
        self._inner = getattr(owner, name)
        setattr(owner, name, self)

    async def __call__(self, *arguments: object) -> object:
        self.began.set()
        try:
            return await self._inner(*arguments)
        finally:
            self.ended.set()


async def test_waiting_for_an_image(serve: Serve, tmp_path: Path) -> None:
    data = contents(2)
    async with (
        serve(tmp_path) as running,
        running.operator.connect() as waiting,
        running.operator.connect() as adding,
    ):
        wait = Watched(running.inside.images, "_wait")
        task = asyncio.create_task(ImageServerClient(waiting).get_image("one", HOUR))
        await wait.began.wait()
        await upload(adding, data)
        await ImageServerClient(adding).add_image("other", image(data))
        assert not task.done()
        await ImageServerClient(adding).add_image("one", image(data))
        got = await task
        assert got is not None
        assert running.inside.images._waiting == {}
        assert await ImageServerClient(waiting).get_image("none", 10**6) is None


async def test_a_caller_that_goes_away_waits_no_longer(serve: Serve, tmp_path: Path) -> None:
    async with serve(tmp_path) as running, running.operator.connect() as client:
        wait = Watched(running.inside.images, "_wait")
        task = asyncio.create_task(ImageServerClient(client).get_image("one", HOUR))
        await wait.began.wait()
        client.conn.abort()
        await asyncio.wait([task])
        assert task.exception() is not None
        await wait.ended.wait()
        assert running.inside.images._waiting == {}


async def test_directories_and_the_latest(serve: Serve, tmp_path: Path) -> None:
    data = contents(1)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.make_directory("a/b", make_all=True)
        assert await images.check_directory("a/b")
        assert not await images.check_directory("b")
        assert [d.name for d in await images.list_directories()] == [".", "a", "a/b"]
        assert "directory: a already exists" in await refused(images.make_directory("a"))
        assert "no metadata for: x" in await refused(images.make_directory("x/y"))
        await upload(client, data)
        assert await images.find_latest_image("a") == ""
        for name in ("a/2", "a/10", "a/b/3"):
            await images.add_image(name, image(data))
        assert await images.find_latest_image("a") == "a/10"
        assert await images.find_latest_image("a/b") == "a/b/3"
        assert "unknown directory: z" in await refused(images.find_latest_image("z"))
        reply = await client.request(
            "ImageServer.DeleteDirectory",
            proto.DeleteDirectoryRequest(directory_name="a"),
            proto.DeleteDirectoryResponse,
        )
        assert "not empty" in reply.error


async def test_rights(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smallstack.audit")
    data = contents(1)
    async with (
        serve(tmp_path) as running,
        running.operator.connect() as operator,
        running.as_user("adder").connect() as adder,
        running.as_user("user").connect() as user,
        running.as_user("member").connect() as member,
    ):
        await upload(operator, data)
        await ImageServerClient(operator).add_image("hers", image(data))
        await upload(adder, data)
        await ImageServerClient(adder).add_image("mine", image(data))
        for call in (
            ImageServerClient(user).add_image("x", image(data)),
            ImageServerClient(user).make_directory("x"),
            ObjectServerClient(user).check_objects([bytes(64)]),
            upload(user, data),
        ):
            with pytest.raises(AccessDeniedError):
                await call
        assert await ImageServerClient(user).get_image("mine") is not None
        assert await ImageServerClient(user).list_images() == ["hers", "mine"]
        text = await refused(ImageServerClient(user).delete_image("mine"))
        assert text.endswith(NO_ACCESS)
        assert (await refused(ImageServerClient(adder).delete_image("hers"))).endswith(NO_ACCESS)
        audited = [r.getMessage() for r in caplog.records if r.name == "smallstack.audit"]
        assert audited[-2].startswith("refused: user@127.0.0.1 from ")
        assert audited[-1].startswith("refused: adder@127.0.0.1 from ")
        assert audited[-1].endswith(f"ImageServer.DeleteImage: {NO_ACCESS}")
        await ImageServerClient(adder).delete_image("mine")
        # An owner group of a directory may delete what is in it.
        await ImageServerClient(operator).make_directory("shared")
        await ImageServerClient(operator).add_image("shared/one", image(data))
        assert (await refused(ImageServerClient(member).delete_image("shared/one"))).endswith(
            NO_ACCESS
        )
        chown = proto.ChangeOwnerRequest(directory_name="shared", owner_group="ops")
        text = await refused(
            user.request("ImageServer.ChownDirectory", chown, proto.ChangeOwnerResponse)
        )
        assert text.endswith("no membership of ops group")
        await operator.request("ImageServer.ChownDirectory", chown, proto.ChangeOwnerResponse)
        await ImageServerClient(member).delete_image("shared/one")
        await ImageServerClient(operator).add_image(
            "owned", image(data, owner_users=["user"], owner_groups=["ops"])
        )
        await ImageServerClient(member).delete_image("owned")
        await ImageServerClient(operator).add_image("owned2", image(data, created_for="user"))
        await ImageServerClient(user).delete_image("owned2")


async def test_objects_can_be_public(serve: Serve, tmp_path: Path) -> None:
    public = frozenset({"ObjectServer.CheckObjects", "ObjectServer.AddObjects"})
    async with (
        serve(tmp_path, public=public) as running,
        running.as_user("user").connect() as user,
    ):
        await upload(user, [b"x"])
        found = await ObjectServerClient(user).check_objects([hashlib.sha512(b"x").digest()])
        assert found == [1]


async def test_expiry(serve: Serve, tmp_path: Path) -> None:
    data = contents(2)

    def after(nanoseconds: int) -> Time:
        return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + nanoseconds)

    async with (
        serve(tmp_path) as running,
        running.operator.connect() as client,
        running.as_user("user").connect() as user,
    ):
        images = ImageServerClient(client)
        await upload(client, data)
        assert "already expired" in await refused(
            images.add_image("past", image(data, expires_at=after(-1)))
        )
        await images.add_image("late", image(data, expires_at=after(HOUR)))
        assert len(running.inside.references) == 2

        async def expiration(name: str) -> proto.GetImageExpirationResponse:
            request = proto.GetImageExpirationRequest(image_name=name)
            return await user.request(
                "ImageServer.GetImageExpiration", request, proto.GetImageExpirationResponse
            )

        async def change(by: Client, name: str, until: Time) -> str:
            request = proto.ChangeImageExpirationRequest(image_name=name, expires_at=until)
            reply = await by.request(
                "ImageServer.ChangeImageExpiration", request, proto.ChangeImageExpirationResponse
            )
            return reply.error

        assert (await expiration("none")).error == "image not found"
        before = (await expiration("late")).expires_at
        assert await change(user, "late", after(2 * HOUR)) == NO_ACCESS
        assert await change(user, "late", Time.zero()) == (
            "not permitted to make image non-expiring"
        )
        assert await change(user, "late", after(25 * HOUR)) == "maximum expiration time is 24h0m0s"
        assert await change(client, "late", after(731 * HOUR)) == (
            "maximum expiration time is 730h0m0s for you"
        )
        assert await change(client, "late", after(2)) == "cannot shorten expiration time"
        assert await change(client, "none", after(HOUR)) == "image not found"
        assert await change(client, "late", after(2 * HOUR)) == ""
        later = (await expiration("late")).expires_at
        assert later.nanoseconds_since_epoch > before.nanoseconds_since_epoch
        reply = await client.request(
            "ImageServer.GetImage",
            proto.GetImageRequest(image_name="late", ignore_filesystem_if_expiring=True),
            proto.GetImageResponse,
        )
        assert reply.image is not None
        assert reply.image.file_system is None
        gone, loop = asyncio.Event(), asyncio.get_running_loop()
        remove = running.inside.images._remove_expired

        def removed(name: str) -> None:
            remove(name)
            loop.call_soon_threadsafe(gone.set)

        running.inside.images._remove_expired = removed  # type: ignore[method-assign]
        # One that is due at once goes by itself, and its name is free again.
        await images.add_image("soon", image(data[:1], expires_at=after(50_000_000)))
        await gone.wait()
        assert not await images.check_image("soon")
        await images.add_image("soon", image(data))
        assert await change(client, "late", Time.zero()) == ""


async def test_the_smaller_questions(serve: Serve, tmp_path: Path) -> None:
    data = contents(3)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await upload(client, data)
        made = image(data, tags={"os": "x"})
        await images.add_image("one", made)
        assert made.file_system is not None
        usage = await client.request(
            "ImageServer.GetImageUsageEstimate",
            proto.GetImageUsageEstimateRequest(image_name="one"),
            proto.GetImageUsageEstimateResponse,
        )
        assert usage.image_exists
        assert usage.usage_estimate == made.file_system.usage_estimate()
        none = await client.request(
            "ImageServer.GetImageUsageEstimate",
            proto.GetImageUsageEstimateRequest(image_name="two"),
            proto.GetImageUsageEstimateResponse,
        )
        assert not none.image_exists
        found = await client.request(
            "ImageServer.GetImageInodes",
            proto.GetImageInodesRequest(image_name="one", filenames=["/f1", "/none"]),
            proto.GetImageInodesResponse,
        )
        assert found.image_exists
        inode = found.inodes[found.inode_numbers["/f1"]]
        assert isinstance(inode, RegularInode)
        assert inode.hash == hashlib.sha512(data[1]).digest()
        for name, exists in (("one", True), ("two", False)):
            files = await client.request(
                "ImageServer.GetImageComputedFiles",
                proto.GetImageComputedFilesRequest(image_name=name),
                proto.GetImageComputedFilesResponse,
            )
            assert (files.image_exists, files.computed_files) == (exists, [])
            empty = await client.request(
                "ImageServer.GetImageInodes",
                proto.GetImageInodesRequest(image_name=name, filenames=["/none"]),
                proto.GetImageInodesResponse,
            )
            assert (empty.image_exists, empty.inodes) == (exists, {})
        master = await client.request(
            "ImageServer.GetReplicationMaster",
            proto.GetReplicationMasterRequest(),
            proto.GetReplicationMasterResponse,
        )
        assert master.replication_master == ""
        async with client.raw("ImageServer.ListSelectedImages") as conn:
            conn.encode(proto.ListSelectedImagesRequest(tags_to_match={"os": ["y"]}))
            await conn.flush()
            assert await conn.read_line() == b""


async def test_a_large_image_comes_whole(serve: Serve, tmp_path: Path) -> None:
    builder = FileSystemBuilder()
    for number in range(20_000):
        inode = builder.add(mode=0o100644, mtime_ns=number)
        builder.link(0, b"file-%d" % number, inode)
    made = Image(file_system=builder.build())
    async with serve(tmp_path) as running, running.operator.connect() as client:
        images = ImageServerClient(client)
        await images.add_image("large", made)
        got = await images.get_image("large")
        assert got is not None
        assert got.file_system == made.file_system


async def pages_of(running: Running, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


async def test_pages(serve: Serve, tmp_path: Path) -> None:
    data = contents(2)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        await ImageServerClient(client).make_directory("d")
        await ImageServerClient(client).add_image("d/<one>", image(data))
        page = await pages_of(running, "/")
        assert "200 OK" in page
        assert "1 images over 2 objects" in page
        assert "d/&lt;one&gt;" in page
        assert "GetObjects() RPC slots: 0 out of 100" in page
        assert "sparse image" in await pages_of(running, "/images/d/%3Cone%3E")
        assert "404" in await pages_of(running, "/images/none")
        assert "OK" in await pages_of(running, "/healthz")
        metrics = await pages_of(running, "/metrics")
        assert "smallstack_images 1.0" in metrics
        assert "smallstack_image_objects 2.0" in metrics
    (tmp_path / "images" / "bad").write_bytes(b"damaged")
    async with serve(tmp_path) as running:
        assert "1 image(s) are damaged" in await pages_of(running, "/healthz")
        assert "checksum is wrong" in await pages_of(running, "/")


async def test_objects_that_were_taken_away_are_told(serve: Serve, tmp_path: Path) -> None:
    data = contents(3)
    async with serve(tmp_path) as running, running.operator.connect() as client:
        await upload(client, data)
        await ImageServerClient(client).add_image("one", image(data))
        assert "OK" in await pages_of(running, "/healthz")
        running.inside.store.delete(hashlib.sha512(data[1]).digest())
    async with serve(tmp_path) as running, running.operator.connect() as client:
        health = await pages_of(running, "/healthz")
        assert "1 objects of images were missing at the start" in health
        assert await ImageServerClient(client).check_image("one"), "it is served all the same"
