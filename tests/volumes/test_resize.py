"""Where a file system is on a disk, and what it takes to give it another size."""

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallstack.volumes.errors import ResizeError
from smallstack.volumes.resize import (
    BLOCK,
    FileSystemPlace,
    find_file_system,
    grow_file_system,
    shrink_file_system,
)

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """One partition from 1 MiB on, with an ext4 of 1 KiB blocks in it."""
    path = tmp_path / "disk"
    part = tmp_path / "part"
    with part.open("wb") as file:
        file.truncate(SIZE - MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", str(part)], check=True)
    path.write_bytes(table((0x83, MIB // 512, (SIZE - MIB) // 512)) + part.read_bytes())
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


def table(*entries: tuple[int, int, int]) -> bytes:
    """The first MiB of a disk with these partitions: type, first sector, sectors."""
    first = bytearray(MIB)
    for number, (kind, start, count) in enumerate(entries):
        at = 446 + 16 * number
        first[at : at + 16] = struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), start, count)
    first[510:512] = b"\x55\xaa"
    return bytes(first)


def check_ext(path: Path) -> None:
    """Raises unless the file system is as it should be."""
    check = ["e2fsck", "-fn", f"{path}?offset={MIB}"]
    subprocess.run(check, check=True, capture_output=True)


def test_what_is_found(disk: tuple[Path, int]) -> None:
    _, fd = disk
    assert find_file_system(fd, SIZE) == FileSystemPlace(MIB, SIZE - MIB, 0)
    part = ((SIZE - MIB) // 512, MIB // 512)
    for entries in (
        [],
        [(0x83, part[1], part[0]), (0x82, 1, 1)],  # a second partition
        [(0x07, part[1], part[0])],  # of another kind
        [(0x83, part[1], part[0] + 1)],  # beyond the disk
        [(0x83, part[1] + 1, 10)],  # with nothing in it
        [(0xEE, 1, 0xFFFFFFFF)],  # a GPT
    ):
        os.pwrite(fd, table(*entries), 0)
        assert find_file_system(fd, SIZE) is None
    os.pwrite(fd, table((0, 0, 0), (0x83, part[1], part[0])), 0)
    assert find_file_system(fd, SIZE) == FileSystemPlace(MIB, SIZE - MIB, 1)
    os.pwrite(fd, b"\x53\xef", 0x438)
    assert find_file_system(fd, SIZE) == FileSystemPlace(0, SIZE, None)
    os.ftruncate(fd, 100)
    assert find_file_system(fd, 100) is None


async def test_a_little_more_is_left_to_the_guest(disk: tuple[Path, int]) -> None:
    path, fd = disk
    place = find_file_system(fd, SIZE)
    assert place is not None
    before = path.read_bytes()
    await grow_file_system(fd, place, SIZE + MIB - BLOCK, None, "x")
    assert path.stat().st_size == SIZE + MIB - BLOCK
    assert path.read_bytes()[:SIZE] == before


async def test_there_and_back(disk: tuple[Path, int]) -> None:
    path, fd = disk
    for size in (SIZE + MIB, 3 * SIZE, SIZE):
        place = find_file_system(fd, path.stat().st_size)
        assert place is not None
        if size > path.stat().st_size:
            await grow_file_system(fd, place, size, None, "x")
        else:
            await shrink_file_system(path, fd, place, size, None, "x")
        assert find_file_system(fd, size) == FileSystemPlace(MIB, size - MIB, 0)
        assert path.stat().st_size == size
        check_ext(path)
        assert {entry.name for entry in path.parent.iterdir()} == {"disk", "part"}


async def test_what_does_not_fit(disk: tuple[Path, int]) -> None:
    path, fd = disk
    place = find_file_system(fd, SIZE)
    assert place is not None
    for size, text in ((MIB, "its file system begins behind"), (MIB + BLOCK, "stays as it is")):
        with pytest.raises(ResizeError, match=text) as raised:
            await shrink_file_system(path, fd, place, size, None, "x")
        assert "\n" not in str(raised.value)
        assert not (tmp := path.with_name("disk~")).exists(), tmp


async def test_a_missing_program_is_named(
    disk: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fd = disk
    place = find_file_system(fd, SIZE)
    assert place is not None
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ResizeError, match="e2fsck is not there; install e2fsprogs"):
        await grow_file_system(fd, place, 2 * SIZE, None, "x")
