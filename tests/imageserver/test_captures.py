"""Clients of another implementation, as captured, talking to our image server in plain mode.

The image and the objects of the captured server are put into ours; its clients' bytes are then
sent as they were recorded, but for the path of CONNECT where TLS was taken off.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from smallstack.daemon.listener import Listener, bind
from smallstack.imageserver.daemon import ImageServer
from smallstack.proto import imageserver, objectserver
from smallstack.proto.image import Image
from smallstack.srpc.gob import NEED_MORE, Decoder
from smallstack.srpc.server import Server

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no captured vectors in {VECTORS}"),
]
T = TypeVar("T")
HEAD = b"HTTP/1.0 200 Connected to Go SRPC\n\n"


class Replies:
    """What a server sent, read call by call."""

    def __init__(self, data: bytes) -> None:
        assert data.startswith(HEAD)
        self.rest = data[len(HEAD) :]

    def line(self) -> str:
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()

    def value(self, kind: type[T]) -> T:
        decoder = Decoder()
        decoder.feed(self.rest)
        value = decoder.decode(kind)
        assert value is not NEED_MORE
        self.rest = decoder.take_rest()
        return value

    def call(self, kind: type[T]) -> T:
        """A request/reply call that went well."""
        assert self.line() == ""
        assert self.line() == ""
        return self.value(kind)

    def objects(self) -> list[bytes]:
        """A GetObjects that went well."""
        assert self.line() == ""
        found = self.value(objectserver.GetObjectsResponse)
        assert found.response_string == ""
        contents = []
        for size in found.object_sizes:
            contents.append(self.rest[:size])
            self.rest = self.rest[size:]
        return contents


def captured(name: str) -> Replies:
    return Replies((VECTORS / f"{name}.s2c.bin").read_bytes())


@asynccontextmanager
async def image_server(
    directory: Path, images: dict[str, Image], contents: list[bytes]
) -> AsyncIterator[Any]:
    inside = ImageServer(directory / "images", directory / "objects")
    inside.load()
    for content in contents:
        inside.store.put(content)
    for name, image in images.items():
        inside.catalogue.make_directory(name.rpartition("/")[0])
        inside.catalogue.add(name, image)
    server = Server(insecure=True)
    inside.register(server)
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)

    async def replay(name: str) -> Replies:
        sent = (VECTORS / f"{name}.c2s.bin").read_bytes()
        head, blank, calls = sent.partition(b"\n\n")
        reader, writer = await asyncio.open_connection(*listener.addresses[0])
        writer.write(head.replace(b"_go_TLS_SRPC_", b"_goSRPC_") + blank)
        head = await reader.readexactly(len(HEAD))
        writer.write(calls)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return Replies(head + data)

    try:
        yield inside, replay
    finally:
        await listener.close(grace=1)
        await inside.close()


async def test_imagetool_gets_an_image(tmp_path: Path) -> None:
    theirs = captured("is-ins-get.01")
    image = theirs.call(imageserver.GetImageResponse).image
    contents = theirs.objects()
    assert image is not None
    async with image_server(tmp_path, {"small/v1": image}, contents) as (_, replay):
        ours = await replay("is-ins-get.01")
        assert ours.call(imageserver.GetImageResponse).image == image
        assert ours.objects() == contents
        assert ours.rest == theirs.rest == b""


async def test_a_hypervisor_creates_from_an_image(tmp_path: Path) -> None:
    theirs = captured("hv-to-is.01")
    directory = theirs.call(imageserver.CheckDirectoryResponse)
    latest = theirs.call(imageserver.FindLatestImageResponse)
    image = theirs.call(imageserver.GetImageResponse).image
    assert image is not None
    contents = [content for n in (2, 3) for content in captured(f"hv-to-is.0{n}").objects()]
    assert image.file_system is not None
    assert {hashlib.sha512(content).digest() for content in contents} <= set(
        image.file_system.objects()
    )
    async with image_server(tmp_path, {"tiny/v1": image}, contents) as (_, replay):
        ours = await replay("hv-to-is.01")
        assert ours.call(imageserver.CheckDirectoryResponse) == directory
        found = ours.call(imageserver.FindLatestImageResponse)
        assert (found.image_name, bool(found.error)) == (latest.image_name, bool(latest.error))
        assert ours.call(imageserver.GetImageResponse).image == image
        for number in (2, 3):
            name = f"hv-to-is.0{number}"
            assert (await replay(name)).objects() == captured(name).objects()


async def test_vm_control_asks_about_an_image(tmp_path: Path) -> None:
    hv = captured("hv-to-is.01")
    hv.call(imageserver.CheckDirectoryResponse)
    hv.call(imageserver.FindLatestImageResponse)
    image = hv.call(imageserver.GetImageResponse).image
    assert image is not None
    async with image_server(tmp_path, {"tiny/v1": image}, []) as (_, replay):
        theirs, ours = captured("vc-to-is.01"), await replay("vc-to-is.01")
        for kind in (
            imageserver.CheckDirectoryResponse,
            imageserver.FindLatestImageResponse,
            imageserver.GetImageInodesResponse,
            imageserver.CheckDirectoryResponse,
            imageserver.FindLatestImageResponse,
            imageserver.GetImageUsageEstimateResponse,
        ):
            assert ours.call(kind) == theirs.call(kind)
        assert ours.rest == theirs.rest == b""


async def test_imagetool_lists_and_makes_directories(tmp_path: Path) -> None:
    async with image_server(tmp_path, {}, []) as (inside, replay):
        for name in ("is-ins-list.01", "is-ins-mkdir.01"):
            ours, theirs = await replay(name), captured(name)
            assert ours.line() == theirs.line() == ""
            if name == "is-ins-mkdir.01":
                assert ours.line() == theirs.line() == ""
                ours.value(imageserver.MakeDirectoryResponse)
            else:
                assert ours.rest == theirs.rest == b"\n"
        assert inside.catalogue.metadata("small") is not None
