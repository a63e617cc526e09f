"""The image server's two clients against handlers that answer as it does."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smallstack.client.errors import ObjectsMissingError, ServiceError
from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.proto import imageserver, objectserver
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.image import Directory, Image
from smallstack.proto.kinds import Hash
from smallstack.srpc.errors import CallError, ConnectionClosedError, RpcError
from smallstack.srpc.server import Call

from .conftest import Serve


def _image() -> Image:
    builder = FileSystemBuilder()
    for number in range(300):
        inode = builder.add(mode=0o100644, size=5, hash=hashlib.sha512(b"%d" % number).digest())
        builder.link(0, b"file%d" % number, inode)
    return Image(created_by="me", file_system=builder.build())


def _image_handlers(seen: list[Any]) -> dict[str, Any]:
    async def add_image(call: Call, request: imageserver.AddImageRequest) -> Any:
        if request.image_name == "taken":
            raise RpcError("image already exists")
        seen.append(request)
        return imageserver.AddImageResponse()

    async def check_image(call: Call, request: imageserver.CheckImageRequest) -> Any:
        return imageserver.CheckImageResponse(image_exists=request.image_name == "a")

    async def get_image(call: Call, request: imageserver.GetImageRequest) -> Any:
        seen.append(request)
        return imageserver.GetImageResponse(image=_image() if request.image_name == "a" else None)

    async def find(call: Call, request: imageserver.FindLatestImageRequest) -> Any:
        if request.directory_name == "none":
            return imageserver.FindLatestImageResponse(error="unknown directory: none")
        return imageserver.FindLatestImageResponse(image_name=f"{request.directory_name}/new")

    async def check_directory(call: Call, request: imageserver.CheckDirectoryRequest) -> Any:
        return imageserver.CheckDirectoryResponse(directory_exists=True)

    async def list_images(call: Call) -> None:
        call.conn.write(b"a\nb/c\n\n")

    async def list_directories(call: Call) -> None:
        for name in ("a", "b", ""):
            call.conn.encode(Directory(name=name))

    async def make_directory(call: Call, request: imageserver.MakeDirectoryRequest) -> Any:
        seen.append(request)
        return imageserver.MakeDirectoryResponse()

    async def delete_image(call: Call, request: imageserver.DeleteImageRequest) -> Any:
        raise RpcError(f"unknown image: {request.image_name}")

    return {
        "AddImage": add_image,
        "CheckImage": check_image,
        "GetImage": get_image,
        "FindLatestImage": find,
        "CheckDirectory": check_directory,
        "ListImages": list_images,
        "ListDirectories": list_directories,
        "MakeDirectory": make_directory,
        "DeleteImage": delete_image,
    }


async def test_every_image_method(serve: Serve) -> None:
    seen: list[Any] = []
    async with (
        serve("ImageServer", _image_handlers(seen)) as address,
        await ImageServerClient.connect(address, None) as client,
    ):
        await client.add_image("new", _image())
        assert (seen[-1].image_name, seen[-1].image.created_by) == ("new", "me")
        assert len(seen[-1].image.file_system) == 301
        with pytest.raises(CallError, match="image already exists"):
            await client.add_image("taken", _image())
        assert await client.check_image("a")
        assert not await client.check_image("b")
        got = await client.get_image("a", 5, ignore_filesystem=True)
        assert got is not None
        assert got.file_system is not None
        assert len(got.file_system) == 301
        assert (seen[-1].timeout, seen[-1].ignore_filesystem) == (5, True)
        assert await client.get_image("b") is None
        assert await client.find_latest_image("dir") == "dir/new"
        with pytest.raises(ServiceError, match="unknown directory"):
            await client.find_latest_image("none")
        assert await client.check_directory("x")
        assert await client.list_images() == ["a", "b/c"]
        assert [d.name for d in await client.list_directories()] == ["a", "b"]
        await client.make_directory("x/y", make_all=True)
        assert seen[-1].make_all
        with pytest.raises(CallError, match="unknown image: z"):
            await client.delete_image("z")


class Store:
    """An object server in memory."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.cut_after: int | None = None

    def handlers(self) -> dict[str, Any]:
        return {"CheckObjects": self.check, "GetObjects": self.get, "AddObjects": self.add}

    async def check(self, call: Call, request: objectserver.CheckObjectsRequest) -> Any:
        sizes = [len(self.objects.get(digest, b"")) for digest in request.hashes]
        return objectserver.CheckObjectsResponse(object_sizes=sizes)

    async def get(self, call: Call) -> None:
        request = await call.conn.decode(objectserver.GetObjectsRequest)
        missing = [digest for digest in request.hashes if digest not in self.objects]
        if missing:
            text = f"unknown object: {missing[0].hex()}"
            call.conn.encode(objectserver.GetObjectsResponse(response_string=text))
            return
        bodies = [self.objects[digest] for digest in request.hashes]
        call.conn.encode(objectserver.GetObjectsResponse(object_sizes=[len(b) for b in bodies]))
        data = b"".join(bodies)
        if self.cut_after is not None:
            call.conn.write(data[: self.cut_after])
            await call.conn.flush()
            call.conn.close()
            return
        call.conn.write(data)

    async def add(self, call: Call) -> None:
        while True:
            request = await call.conn.decode(objectserver.AddObjectRequest)
            if not request.length:
                return
            data = await call.conn.read_exactly(request.length)
            digest = hashlib.sha512(data).digest()
            reply = objectserver.AddObjectResponse(hash=Hash(digest))
            if request.expected_hash not in {None, digest}:
                reply.error_string = "hash mismatch"
                call.conn.encode(reply)
                await call.conn.flush()
                continue
            reply.added = digest not in self.objects
            self.objects[digest] = data
            call.conn.encode(reply)


async def test_objects_there_and_back(serve: Serve, tmp_path: Path) -> None:
    store = Store()
    big = tmp_path / "big"
    big.write_bytes(b"b" * 1_000_000)
    async with (
        serve("ObjectServer", store.handlers()) as address,
        await ObjectServerClient.connect(address, None) as client,
    ):
        new = [NewObject(b"one"), NewObject(big, hashlib.sha512(big.read_bytes()).digest())]
        replies = await client.add_objects(new)
        assert [reply.added for reply in replies] == [True, True]

        async def again() -> AsyncIterator[NewObject]:
            for number in range(5000):
                yield NewObject(b"%d" % (number % 5))

        replies = await client.add_objects(again())
        assert len(replies) == 5000
        assert sum(reply.added for reply in replies) == 5
        one, two = hashlib.sha512(b"one").digest(), hashlib.sha512(big.read_bytes()).digest()
        assert await client.check_objects([one, two, bytes(64)]) == [3, 1_000_000, 0]
        got = [
            (reader.digest, reader.size, await reader.read(3))
            async for reader in client.get_objects([one, two, one])
        ]
        assert got == [(one, 3, b"one"), (two, 1_000_000, b"bbb"), (one, 3, b"one")]
        pieces = [
            piece async for reader in client.get_objects([two, one]) async for piece in reader
        ]
        assert b"".join(pieces) == big.read_bytes() + b"one"
        whole = [await reader.read_all() async for reader in client.get_objects([one, two])]
        assert whole == [b"one", big.read_bytes()]
        with pytest.raises(ObjectsMissingError, match=r"127\.0\.0\.1:\d+ does not have .*unknown"):
            async for _ in client.get_objects([one, bytes(64)]):
                raise AssertionError("it came")
        assert await client.check_objects([one]) == [3]


async def test_a_server_that_stops_in_the_middle(serve: Serve) -> None:
    store = Store()
    store.objects = {hashlib.sha512(b"x" * 9).digest(): b"x" * 9}
    store.cut_after = 4
    async with (
        serve("ObjectServer", store.handlers()) as address,
        await ObjectServerClient.connect(address, None) as client,
    ):
        with pytest.raises(ConnectionClosedError, match="5 of 9 bytes are missing"):
            async for reader in client.get_objects(list(store.objects)):
                await reader.read_all()


async def test_a_wrong_digest_is_told(serve: Serve) -> None:
    store = Store()
    async with serve("ObjectServer", store.handlers()) as address:
        client = await ObjectServerClient.connect(address, None)
        with pytest.raises(ServiceError, match="hash mismatch"):
            await client.add_objects([NewObject(b"data", bytes(64)), NewObject(b"more")])
        client = await ObjectServerClient.connect(address, None)
        with pytest.raises(ServiceError, match="is empty"):
            await client.add_objects([NewObject(b"")])
