"""Objects that came shortly before a power cut, and no image needs yet."""

import hashlib
import os
from pathlib import Path

from smallstack.imageserver.daemon import ImageServer
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.image import Image

LARGE = os.urandom(2 << 20)
SHORT = b"a line\n" * 1000
GOOD = b"another line\n" * 1000
NEEDED = b"what an image needs"


def opened(directory: Path, boot: str) -> ImageServer:
    server = ImageServer(directory / "images", directory / "objects", boot)
    server.load()
    return server


def image() -> Image:
    builder = FileSystemBuilder(mtime_ns=0)
    digest = hashlib.sha512(NEEDED).digest()
    index = builder.add(mode=0o100644, size=len(NEEDED), hash=digest, mtime_ns=0)
    builder.link(0, b"file", index)
    return Image(file_system=builder.build())


async def test_what_a_power_cut_has_torn_is_not_taken_for_whole(tmp_path: Path) -> None:
    server = opened(tmp_path, "the first boot")
    contents = (LARGE, SHORT, GOOD, NEEDED)
    large, short, good, needed = (server.store.put(content) for content in contents)
    server.images.put("one", image())
    # As ext4 leaves files whose names came to the disk before their bytes.
    for path in map(server.store.path, (large, short)):
        path.chmod(0o644)
    server.store.path(large).write_bytes(bytes(len(LARGE)))
    os.truncate(server.store.path(short), 4096)
    await server.close()

    server = opened(tmp_path, "the first boot")
    assert server.store.size(large) == len(LARGE), "nothing is read without a reason"
    await server.close()

    server = opened(tmp_path, "the second boot")
    assert dict(server.store.list()) == {good: len(GOOD), needed: len(NEEDED)}
    assert server.trouble() == ""
    assert server.store.put(LARGE) == large
    await server.close()

    server = opened(tmp_path, "the second boot")
    assert server.store.verify(large).size == len(LARGE)
    await server.close()
