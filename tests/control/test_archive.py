"""What stands in the way of an archive is named: the path that failed, or the server."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.control.archive import _Out, _output, _write
from smallstack.control.images import Progress
from smallstack.images.errors import ArchiveError
from smallstack.images.tar_writer import TarMember
from smallstack.objects.errors import FetchError
from tests.objects.sources import MemorySource, digest

CONTENT = b"content" * 1000
MEMBERS = [TarMember(b"header", digest(CONTENT), len(CONTENT))]


class Resetting:
    """A server's objects, as its connection breaks."""

    name = "the server"
    sizes = (len(CONTENT),)

    @asynccontextmanager
    async def open_objects(self, hashes: Sequence[bytes]) -> AsyncIterator["Resetting"]:
        yield self

    async def read(self, limit: int) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")


async def archive(target: object, source: object = None, compression: str = "none") -> str:
    """What is told of writing MEMBERS there; "": nothing."""
    try:
        with _output(str(target), compression) as out:
            await _write(source or MemorySource(CONTENT), MEMBERS, out, Progress())  # type: ignore[arg-type]
    except (ArchiveError, FetchError) as error:
        return str(error)
    return ""


async def test_it_appears_whole(tmp_path: Path) -> None:
    assert await archive(tmp_path / "a.tar") == ""
    assert (tmp_path / "a.tar").read_bytes() == b"header" + CONTENT + bytes(-len(CONTENT) % 512)
    assert os.listdir(tmp_path) == ["a.tar"]  # noqa: PTH208


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip", "xz"])
async def test_a_server_that_goes_away(tmp_path: Path, compression: str) -> None:
    told = await archive(tmp_path / "a.tar", Resetting(), compression)
    assert "the server" in told
    assert told.endswith("Connection reset by peer")
    assert str(tmp_path) not in told
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    told = await archive(tmp_path / "taken")
    assert told == f"cannot write the archive {tmp_path}/taken: Is a directory"
    told = await archive(tmp_path / "none" / "a.tar")
    assert told == (
        f"cannot write the archive {tmp_path}/none/a.tar: No such file or directory:"
        f" {tmp_path}/none/.a.tar.{os.getpid()}~"
    )
    assert os.listdir(tmp_path) == ["taken"]  # noqa: PTH208


async def test_a_full_disk() -> None:
    with await asyncio.to_thread(open, "/dev/full", "wb", buffering=0) as file:
        full = pytest.raises(ArchiveError, match=r"archive a\.tar: No space left on device$")
        with full:
            await _write(MemorySource(CONTENT), MEMBERS, _Out(file, "a.tar"), Progress())
        full = pytest.raises(ArchiveError, match="archive to standard output: No space left")
        with full:
            await _write(MemorySource(CONTENT), MEMBERS, _Out(file, "-"), Progress())
