"""At the limits: the largest disk, links, files beyond 4 GiB, trees deeper than any path."""

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes.brick import BrickStore
from smallstack.volumes.errors import CorruptObjectError, RootSizeError, TreeInvalidError
from smallstack.volumes.layout import path_of
from smallstack.volumes.partition import MBR_LIMIT, divide
from tests.volumes.conftest import MIB, SEED, Write
from tests.volumes.disks import e2fsck, mounted
from tests.volumes.trees import Objects

GIB = 1 << 30
TIB = 1 << 40
DEPTH = 3000  # the whole path has more than PATH_MAX bytes


@dataclass
class Tables:
    """The tables of a tree that nobody has checked."""

    inodes: bytes
    entries: bytes
    blob: bytes


def file_tree(digest: bytes, size: int, names: int = 1) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=10**18)
    index = builder.add(mode=0o100644, size=size, hash=digest, mtime_ns=10**18)
    for number in range(names):
        builder.link(0, b"file%d" % number, index)
    return builder.build()


def blake3_of(size: int, spans: list[tuple[int, bytes]]) -> bytes:
    """Of data at some offsets and zeros elsewhere, without reading gigabytes of a hole."""
    hasher, zeros, done = blake3(), bytes(16 * MIB), 0
    for at, data in [*spans, (size, b"")]:
        while done < at:
            part = min(at - done, len(zeros))
            hasher.update(memoryview(zeros)[:part])
            done += part
        hasher.update(data)
        done += len(data)
    return hasher.digest()


def deep_tree(objects: Objects, depth: int) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=10**18)
    at = 0
    for number in range(depth):
        directory = builder.add(mode=0o40755, mtime_ns=10**18)
        builder.link(at, b"%d" % number, directory)
        at = directory
    content = b"at the bottom" * 10
    index = builder.add(mode=0o100644, size=len(content), hash=objects.add(content))
    builder.link(at, b"file", index)
    return builder.build()


@pytest.mark.root
@pytest.mark.parametrize("size", [MBR_LIMIT + 16 * MIB, 16 * TIB - 4096])
def test_disks_with_a_gpt(size: int, objects: Objects, write: Write, tmp_path: Path) -> None:
    """Above 2 TiB, up to what an ext4 host's file can have: clean, mounted, mostly a hole.

    The kernel's mount checks every group's descriptor. Of the largest, `e2fsck` takes most of a
    minute: it runs with SMALLSTACK_TEST_LARGEST_FSCK=1.
    """
    try:
        with (tmp_path / "probe").open("wb") as file:
            file.truncate(size)
    except OSError:
        pytest.skip(f"the host's file system holds no file of {size} bytes")
    content = b"content" * 1000
    disk, layout = write(file_tree(objects.add(content), len(content)), size)
    root = divide(size, FirmwareType.BIOS, SEED).root
    assert layout.blocks == root.size // 4096
    print(f"{size} bytes: {layout.written} written, {disk.stat().st_blocks * 512} on disk")
    # super block and descriptors of every group, and the copies of them that sparse_super asks for
    assert disk.stat().st_blocks * 512 < 48 * MIB + layout.groups * 64 * 32
    if size < 3 * TIB or os.environ.get("SMALLSTACK_TEST_LARGEST_FSCK"):
        e2fsck(disk, root.offset)
    else:
        print("e2fsck of the largest disk: not without SMALLSTACK_TEST_LARGEST_FSCK=1")
    with mounted(disk, tmp_path / "mnt", root.offset) as there:
        assert (there / "file0").read_bytes() == content


@pytest.mark.parametrize("size", [16 * TIB, 16 * TIB + 2 * MIB])
async def test_a_disk_no_ext4_can_fill(size: int, objects: Objects, tmp_path: Path) -> None:
    """The message names what there can be; the first is one block more than a file has on ext4."""
    if size == 16 * TIB:
        with (tmp_path / "probe").open("wb") as file, suppress(OSError):
            file.truncate(size)
            pytest.skip(f"the host's file system holds files of {size} bytes")
    fs = file_tree(objects.add(b"x"), 1)
    store = BrickStore(tmp_path / "bricks", objects)
    with pytest.raises(RootSizeError) as caught:
        await store.get(fs, b"image", size, FirmwareType.BIOS)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"a root of {size} bytes cannot be made: ")
    assert told.endswith((f" {16 * TIB - 4096} at most", f" to {16 * TIB - 4096}"))
    assert list((tmp_path / "bricks").iterdir()) == []


@pytest.mark.root
def test_as_many_names_as_a_file_can_have(objects: Objects, write: Write, tmp_path: Path) -> None:
    digest = objects.add(b"x" * 100)
    disk, _ = write(file_tree(digest, 100, 65_000))
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root:
        assert (root / "file64999").stat().st_nlink == 65_000
    with pytest.raises(TreeInvalidError, match=r"'/file0': more than 65000 hard links"):
        write(file_tree(digest, 100, 65_001))


@pytest.mark.root
def test_a_sparse_file_beyond_4_gib(objects: Objects, write: Write, tmp_path: Path) -> None:
    """Data around 4 GiB and in the last block; the rest stays a hole."""
    size = 4 * GIB + 64 * MIB + 5
    spans = [(0, b"first" * 1000), (4 * GIB - 4096, b"middle!!" * 1024), (size - 5, b"12345")]
    digest = bytes(range(64))  # SHA-512 is not looked at here, and of 4 GiB takes 10 s
    path = objects.path(digest)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in spans:
            file.seek(at)
            file.write(data)
    objects.digests[digest] = blake3_of(size, spans)
    disk, _ = write(file_tree(digest, size))
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root, (root / "file0").open("rb") as file:
        st = os.fstat(file.fileno())
        assert st.st_size == size
        assert st.st_blocks * 512 == sum(-(-len(data) // 4096) * 4096 for _, data in spans)
        for at, data in spans:
            file.seek(at)
            assert file.read(len(data)) == data
        assert os.lseek(file.fileno(), 8192, os.SEEK_DATA) == 4 * GIB - 4096


@pytest.mark.root
def test_deeper_than_any_path(objects: Objects, write: Write, tmp_path: Path) -> None:
    fs = deep_tree(objects, DEPTH)
    disk, _ = write(fs)
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root:
        at = os.open(root, os.O_RDONLY)
        for number in range(DEPTH):
            at, above = os.open(str(number), os.O_RDONLY, dir_fd=at), at
            os.close(above)
        file = os.open("file", os.O_RDONLY, dir_fd=at)
        assert os.read(file, 1000) == b"at the bottom" * 10
        os.close(file)
        os.close(at)


def test_an_error_at_the_bottom_of_a_deep_tree(objects: Objects, write: Write) -> None:
    """One pass over the tree and one line, however deep: looking each level up would take hours."""
    fs = deep_tree(objects, 100_000)
    (digest,) = objects.digests
    objects.path(digest).write_bytes(b"another thing")
    with pytest.raises(CorruptObjectError) as caught:
        write(fs, 1024 * MIB)
    assert re.match(r"\.\.\./\d+/", caught.value.path)
    assert caught.value.path.endswith("/99998/99999/file")
    assert len(caught.value.path) < 5000


def test_paths_of_broken_trees() -> None:
    """A loop, nothing that leads there, and entries that all directories share."""
    builder = FileSystemBuilder()
    one = builder.add(mode=0o40755)
    builder.link(0, b"one", one)
    builder.link(one, b"two", builder.add(mode=0o100644))
    good = builder.build()
    assert path_of(good, 0) == "/"
    assert path_of(good, 2) == "/one/two"
    assert path_of(good, 7) == "inode/7"

    inodes, entries, blob = bytes(good.inodes), bytes(good.entries), bytes(good.blob)
    nothing, everything = bytes(8), b"\0\0\0\0\xff\xff\xff\xff"
    cut_off = Tables(inodes[:56] + nothing + inodes[64:], entries, blob)
    assert path_of(cut_off, 2) == "inode/2"
    root = inodes[:56] + everything + inodes[64:144]
    assert path_of(Tables(root * 3, entries, blob), 2) == "/two"
    entry = entries[:12]  # names inode 1, and lies in it
    loop = inodes[:56] + nothing + inodes[64:200] + struct.pack("<II", 0, 1) + inodes[208:]
    assert path_of(Tables(loop, entry, blob), 1) == "inode/1"
