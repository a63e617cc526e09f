"""An image server in the test's own process, with trouble on demand."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha512
from pathlib import Path

from smallstack.daemon.listener import Listener, bind
from smallstack.images.build import from_directory
from smallstack.images.decompress import Readable
from smallstack.proto import imageserver as proto
from smallstack.proto.image import Image
from smallstack.proto.objectserver import GetObjectsRequest, GetObjectsResponse
from smallstack.srpc.server import Call, Server


class MemorySink:
    """Objects in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}

    def add(self, file: Readable, size: int) -> bytes:
        data = file.read(size)
        digest = sha512(data).digest()
        self.objects[digest] = data
        return digest


@dataclass
class ScriptedImageServer:
    """Images by name; ``calls`` tells what was asked."""

    images: dict[str, Image] = field(default_factory=dict)
    sink: MemorySink = field(default_factory=MemorySink)
    calls: list[str] = field(default_factory=list)
    address: str = ""
    cut_after: int | None = None
    """Bytes of objects after which a transfer is cut, once."""
    hang: asyncio.Event | None = None
    """GetImage and GetObjects wait for it."""
    silent: asyncio.Event | None = None
    """Every question waits for it."""
    _listener: Listener | None = None

    def add(self, name: str, directory: Path) -> Image:
        """Add a directory as an image."""
        image = Image(file_system=from_directory(directory, self.sink))
        self.images[name] = image
        return image

    def corrupt(self, digest: bytes) -> None:
        """Change one byte of an object."""
        data = bytearray(self.sink.objects[digest])
        data[len(data) // 2] ^= 1
        self.sink.objects[digest] = bytes(data)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedImageServer"]:
        """Serve on loopback, in plain text."""
        server = Server(insecure=True)
        server.register(
            "ImageServer",
            {
                "CheckImage": self._check_image,
                "CheckDirectory": self._check_directory,
                "FindLatestImage": self._find_latest,
                "GetImage": self._get_image,
            },
        )
        server.register("ObjectServer", {"GetObjects": self._get_objects})
        self._listener = listener = Listener(server)
        for sock in bind("127.0.0.1", 0):
            await listener.add(sock)
        self.address = f"127.0.0.1:{listener.addresses[0][1]}"
        try:
            yield self
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Close everything at once."""
        if self._listener is not None:
            await self._listener.close(0)
            self._listener = None

    async def _speak(self) -> None:
        if self.silent is not None:
            await self.silent.wait()

    async def _check_image(
        self, _: Call, request: proto.CheckImageRequest
    ) -> proto.CheckImageResponse:
        self.calls.append(f"CheckImage {request.image_name}")
        await self._speak()
        return proto.CheckImageResponse(image_exists=request.image_name in self.images)

    async def _check_directory(
        self, _: Call, request: proto.CheckDirectoryRequest
    ) -> proto.CheckDirectoryResponse:
        self.calls.append(f"CheckDirectory {request.directory_name}")
        await self._speak()
        prefix = request.directory_name + "/"
        exists = any(name.startswith(prefix) for name in self.images) or prefix == "empty/"
        return proto.CheckDirectoryResponse(directory_exists=exists)

    async def _find_latest(
        self, _: Call, request: proto.FindLatestImageRequest
    ) -> proto.FindLatestImageResponse:
        self.calls.append(f"FindLatestImage {request.directory_name}")
        await self._speak()
        prefix = request.directory_name + "/"
        found = [name for name in self.images if name.startswith(prefix)]
        return proto.FindLatestImageResponse(image_name=found[-1] if found else "")

    async def _get_image(self, _: Call, request: proto.GetImageRequest) -> proto.GetImageResponse:
        self.calls.append(f"GetImage {request.image_name}")
        if self.hang is not None:
            await self.hang.wait()
        return proto.GetImageResponse(image=self.images.get(request.image_name))

    async def _get_objects(self, call: Call) -> None:
        conn = call.conn
        request = await conn.decode(GetObjectsRequest)
        self.calls.append(f"GetObjects {len(request.hashes)}")
        if self.hang is not None:
            await self.hang.wait()
        missing = [h for h in request.hashes if bytes(h) not in self.sink.objects]
        if missing:
            text = f"unknown object: {missing[0]}"
            conn.encode(GetObjectsResponse(response_string=text))
            await conn.flush()
            return
        found = [self.sink.objects[bytes(h)] for h in request.hashes]
        conn.encode(GetObjectsResponse(object_sizes=[len(data) for data in found]))
        stream = io.BytesIO(b"".join(found))
        if self.cut_after is not None:
            cut, self.cut_after = self.cut_after, None
            conn.write(stream.read(cut))
            await conn.flush()
            conn.abort()
            return
        conn.write(stream.read())
        await conn.flush()
