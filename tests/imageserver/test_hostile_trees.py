"""Images whose trees no builder makes, sent as bytes: refused in one line; the server goes on."""

import hashlib
from pathlib import Path

import pytest

from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.proto.filesystem import ENTRY, INODE, FileSystem, FileSystemBuilder
from smallstack.proto.image import Image
from smallstack.telemetry.errors import SmallStackError, describe
from tests.imageserver.conftest import Serve

CONTENT = b"xyz"
HASH = hashlib.sha512(CONTENT).digest()
DIRECTORY, FILE, LINK = 0o40755, 0o100644, 0o120777


def tree(*inodes: tuple[int, int, list[tuple[bytes, int]]]) -> FileSystem:
    """A tree of (mode, size, what is in it), as it is, unchecked; the first is the root."""
    packed, entries, blob = bytearray(), bytearray(), bytearray()
    for number, (mode, size, names) in enumerate(inodes):
        first = len(entries) // ENTRY.size
        for name, child in names:
            entries += ENTRY.pack(child, len(blob), len(name))
            blob += name
        hash_ = HASH if size else b""
        facts = (number, size, 0, 0, mode, 0, 0, 0, 0, 0, first, len(names), 0, 0, 0, 0)
        packed += INODE.pack(*facts, hash_)
    return FileSystem(
        bytes(packed),
        bytes(entries),
        bytes(blob),
        num_regular_inodes=0,
        total_data_bytes=0,
        directory_count=0,
    )


HOSTILE = {
    "a directory in itself": tree((DIRECTORY, 0, [(b"a", 1)]), (DIRECTORY, 0, [(b"b", 1)])),
    "two directories in each other": tree(
        (DIRECTORY, 0, [(b"a", 1)]), (DIRECTORY, 0, [(b"b", 2)]), (DIRECTORY, 0, [(b"c", 1)])
    ),
    "a hard-linked directory": tree(
        (DIRECTORY, 0, [(b"a", 1), (b"b", 1)]), (DIRECTORY, 0, [(b"c", 2)]), (FILE, 3, [])
    ),
    "a name twice": tree((DIRECTORY, 0, [(b"a", 1), (b"a", 2)]), (FILE, 3, []), (FILE, 3, [])),
    "a name that leads up": tree((DIRECTORY, 0, [(b"..", 1)]), (FILE, 3, [])),
    "a name with a slash": tree((DIRECTORY, 0, [(b"../etc", 1)]), (FILE, 3, [])),
    "an empty name": tree((DIRECTORY, 0, [(b"", 1)]), (FILE, 3, [])),
    "a long name": tree((DIRECTORY, 0, [(b"n" * 256, 1)]), (FILE, 3, [])),
    "a symlink to nothing": tree((DIRECTORY, 0, [(b"a", 1)]), (LINK, 0, [])),
    "an absurd size": tree((DIRECTORY, 0, [(b"a", 1)]), (FILE, 1 << 62, [])),
    "a size of all ones": tree((DIRECTORY, 0, [(b"a", 1)]), (FILE, (1 << 64) - 1, [])),
    "two sizes of one object": tree(
        (DIRECTORY, 0, [(b"a", 1), (b"b", 2)]), (FILE, 3, []), (FILE, 4, [])
    ),
    "two sizes of one object, the right one last": tree(
        (DIRECTORY, 0, [(b"a", 1), (b"b", 2)]), (FILE, 1 << 40, []), (FILE, 3, [])
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
async def test_it_is_refused(serve: Serve, tmp_path: Path, name: str) -> None:
    async with serve(tmp_path) as running:
        async with running.operator.connect() as client:
            await ObjectServerClient(client).add_objects([NewObject(CONTENT)])
            with pytest.raises(SmallStackError) as caught:
                await ImageServerClient(client).add_image("x", Image(file_system=HOSTILE[name]))
            assert "\n" not in describe(caught.value)
            assert len(describe(caught.value)) < 500
        async with running.operator.connect() as client:
            images = ImageServerClient(client)
            assert await images.list_images() == []
            builder = FileSystemBuilder()
            builder.link(0, b"a", builder.add(mode=FILE, size=3, hash=HASH))
            await images.add_image("x", Image(file_system=builder.build()))
            assert await images.list_images() == ["x"]
