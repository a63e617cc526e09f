"""What dumpe2fs and debugfs say about a written root: features, sizes, extents, holes."""

import os
import re
import struct
from pathlib import Path

import pytest

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes import ext4
from smallstack.volumes.errors import (
    RootSizeError,
    RootTooSmallError,
    TooManyInodesError,
    XattrsTooLargeError,
)
from smallstack.volumes.partition import PARTITION_OFFSET
from tests.volumes.conftest import MIB, Write
from tests.volumes.disks import differences, e2fsck, mounted, run
from tests.volumes.trees import Objects

FEATURES = {
    "has_journal", "ext_attr", "dir_index", "filetype", "extent", "64bit", "flex_bg",
    "metadata_csum_seed", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize",
    "metadata_csum",
}  # fmt: skip
GIB = 1 << 30


def tree_of(objects: Objects, *contents: bytes) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=10**18)
    for number, content in enumerate(contents):
        index = builder.add(
            mode=0o100644, size=len(content), hash=objects.add(content), mtime_ns=10**18
        )
        builder.link(0, b"file%d" % number, index)
    return builder.build()


def facts(disk: Path) -> dict[str, str]:
    text = run("dumpe2fs", "-h", f"{disk}?offset={PARTITION_OFFSET}")
    return dict(re.findall(r"^([^:\n]+):\s+(.*)$", text, re.MULTILINE))


def debugfs(disk: Path, request: str) -> str:
    return run("debugfs", "-R", request, f"{disk}?offset={PARTITION_OFFSET}")


def test_features_are_those_a_debian_12_kernel_and_grub_read(
    objects: Objects, write: Write
) -> None:
    disk, layout = write(tree_of(objects, b"x"))
    found = facts(disk)
    assert set(found["Filesystem features"].split()) == FEATURES
    assert found["Filesystem flags"].strip() == "unsigned_directory_hash"
    assert found["Default directory hash"] == "half_md4"
    assert found["Inode size"] == "256"
    assert found["Block size"] == "4096"
    assert found["Checksum type"] == "crc32c"
    assert found["Filesystem state"] == "clean"
    assert found["Block count"] == str(layout.blocks)
    assert found["Free blocks"] == str(layout.free_blocks)
    assert found["Free inodes"] == str(layout.free_inodes)
    assert found["Filesystem created"] == "Sun Sep  9 01:46:40 2001"


@pytest.mark.parametrize(
    "size",
    [
        64 * MIB, 65 * MIB, 128 * MIB, 129 * MIB + 4096, 130 * MIB, 256 * MIB, GIB, GIB + MIB,
        2 * GIB + MIB, 2 * GIB + 3 * MIB, 5 * GIB, 33 * GIB, 129 * GIB,
        (2 << 40) - 4096,
    ],
)  # fmt: skip
def test_sizes(size: int, objects: Objects, write: Write, tmp_path: Path) -> None:
    """Groups that end anywhere; the journal is of mke2fs's own size."""
    disk, layout = write(tree_of(objects, b"content" * 1000), size)
    e2fsck(disk)
    reference = tmp_path / "reference"
    with reference.open("wb") as file:
        file.truncate(size - PARTITION_OFFSET)
    text = run("mke2fs", "-n", "-F", "-t", "ext4", reference, f"{(size - PARTITION_OFFSET) >> 10}k")
    assert "Superblock backups" in text or size < 130 * MIB
    blocks = (size - PARTITION_OFFSET) // 4096
    expected = next(
        length
        for limit, length in [
            (32768, 1024), (262144, 4096), (524288, 8192), (4194304, 16384), (8388608, 32768),
            (16777216, 65536), (33554432, 131072), (1 << 40, 262144),
        ]
        if blocks < limit
    )  # fmt: skip
    assert layout.journal_blocks == expected
    assert blocks - 32768 < layout.blocks <= blocks
    assert disk.stat().st_blocks * 512 < 48 * MIB + layout.groups * 512


def test_largest_of_all(objects: Objects, tmp_path: Path) -> None:
    """16 TiB less a block on a host that can hold the file; the metadata's own numbers check."""
    size = (16 << 40) - 4096
    path = tmp_path / "disk"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    directory = os.open(objects.directory, os.O_RDONLY)
    try:
        try:
            os.ftruncate(fd, size)
        except OSError:
            pytest.skip("the host's file system holds no file of 16 TiB")
        fs = tree_of(objects, b"x" * 100)
        layout = ext4.write_root(
            fd, fs, directory, facts=objects.facts, size=size, uuid=bytes(16), time=1
        )
    finally:
        os.close(fd)
        os.close(directory)
    assert layout.blocks == 2**32 - 1
    text = run("dumpe2fs", "-h", path)
    assert "Block count:              4294967295" in text
    listing = run("debugfs", "-R", "stat /file0", path)
    assert "Size: 100" in listing


def test_smaller_and_larger_are_refused(objects: Objects, write: Write, tmp_path: Path) -> None:
    with pytest.raises(RootSizeError):
        write(tree_of(objects, b"x"), 4 * MIB)
    with pytest.raises(RootSizeError):
        write(tree_of(objects, b"x"), 17 << 40)


def test_a_tree_that_does_not_fit(objects: Objects, write: Write) -> None:
    fs = tree_of(objects, *(bytes([n]) * MIB for n in range(70)))
    with pytest.raises(RootTooSmallError) as caught:
        write(fs, 64 * MIB)
    needed = caught.value.needed
    disk, _ = write(fs, -(-(needed + 4 * MIB) // MIB) * MIB)
    e2fsck(disk)
    builder = FileSystemBuilder()
    for number in range(33000):
        builder.link(0, b"%d" % number, builder.add(mode=0o100644))
    with pytest.raises(TooManyInodesError, match=r"35139 inodes.* hold 32768"):
        write(builder.build(), 64 * MIB)


def test_to_the_last_block(objects: Objects, write: Write) -> None:
    """Every number of free blocks down to none, then one too many."""
    _, layout = write(tree_of(objects, b"x"), 64 * MIB)
    blocks = layout.free_blocks + 1
    disk, layout = write(tree_of(objects, b"y" * (blocks * 4096)), 64 * MIB)
    assert layout.free_blocks == 0
    e2fsck(disk)
    with pytest.raises(RootTooSmallError):
        write(tree_of(objects, b"y" * (blocks * 4096 + 1)), 64 * MIB)


@pytest.mark.root
def test_deep_extents_and_holes(objects: Objects, write: Write, tmp_path: Path) -> None:
    """Files of thousands of separate pieces: extent trees of depth one and two."""
    builder = FileSystemBuilder()
    shapes = {
        b"none": (2 * MIB, []),
        b"tail": (8 * MIB, [(0, b"head" * 2000)]),
        b"end": (8 * MIB + 5, [(8 * MIB, b"12345")]),
        b"four": (2 * MIB, [(n * 16384, b"f" * 4096) for n in range(4)]),
        b"five": (2 * MIB, [(n * 16384, b"f" * 4096) for n in range(5)]),
        b"depth1": (12 * MIB, [(n * 8192, b"%04d" % n * 1024) for n in range(1360)]),
        b"depth2": (24 * MIB, [(n * 8192, b"%04d" % n * 1024) for n in range(2800)]),
    }
    for name, (size, spans) in shapes.items():
        digest = objects.add_holes(size, spans)
        builder.link(0, name, builder.add(mode=0o100644, size=size, hash=digest))
    fs = builder.build()
    disk, _ = write(fs, 128 * MIB)
    e2fsck(disk)
    for name, depth in ((b"none", 0), (b"four", 0), (b"five", 1), (b"depth1", 1), (b"depth2", 2)):
        levels = re.findall(
            r"^\s*\d+/\s*(\d+)", debugfs(disk, f"ex /{name.decode()}"), re.MULTILINE
        )
        assert max(map(int, levels), default=0) == depth, name
    with mounted(disk, tmp_path / "mnt") as root:
        assert differences(fs, root) == []
        for name, (_, spans) in shapes.items():
            # i_blocks: what has data, and the blocks of the extent tree
            pieces = sum(-(-len(data) // 4096) for _, data in spans)
            tree = (len(spans) > 4) * -(-len(spans) // 340) + (len(spans) > 1360)
            blocks = (root / name.decode()).stat().st_blocks // 8
            assert blocks == pieces + tree, name


@pytest.mark.root
def test_a_file_over_many_groups(objects: Objects, write: Write, tmp_path: Path) -> None:
    """One file around the metadata of later groups, longer than one extent can be."""
    size = 450 * MIB
    spans = [(0, b"first"), (20 * MIB, b"m" * 400 * MIB), (size - 4096, b"last" * 1024)]
    digest = objects.add_holes(size, spans)
    other = objects.add(b"other" * MIB)
    builder = FileSystemBuilder()
    builder.link(0, b"large", builder.add(mode=0o100644, size=size, hash=digest))
    builder.link(0, b"other", builder.add(mode=0o100644, size=5 * MIB, hash=other))
    fs = builder.build()
    disk, _ = write(fs, GIB)
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root:
        assert differences(fs, root) == []


def test_directory_hash_as_debugfs_has_it(objects: Objects, write: Write) -> None:
    seed = bytes(range(16))
    uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f"
    disk, _ = write(tree_of(objects, b"x"))
    for name in ("a", "file-000123", "x" * 31, "x" * 32, "x" * 33, "n" * 200, "m" * 255):
        text = debugfs(disk, f"dx_hash -h half_md4 -s {uuid} {name}")
        found = re.search(r"is (0x[0-9a-f]+)", text)
        assert found is not None
        assert ext4.directory_hash(seed, name.encode()) == int(found[1], 16), name


def test_xattrs_that_do_not_fit(objects: Objects, write: Write) -> None:
    for size, fits in ((3500, True), (4040, True), (4041, False), (60000, False)):
        builder = FileSystemBuilder()
        index = builder.add(mode=0o100644, xattrs={b"trusted.a": b"v" * size})
        directory = builder.add(mode=0o40755)
        builder.link(0, b"dir", directory)
        builder.link(directory, b"file", index)
        if fits:
            e2fsck(write(builder.build())[0])
        else:
            with pytest.raises(XattrsTooLargeError, match="'/dir/file'"):
                write(builder.build())


def test_metadata_seed_is_the_bricks_own(objects: Objects, write: Write) -> None:
    """A new UUID changes no other checksum: the seed stands in the super block."""
    disk, _ = write(tree_of(objects, b"x"))
    run("tune2fs", "-U", "random", f"{disk}?offset={PARTITION_OFFSET}", check=False)
    e2fsck(disk)
    with disk.open("rb") as file:
        file.seek(PARTITION_OFFSET + 1024 + 0x270)
        (seed,) = struct.unpack("<I", file.read(4))
    assert seed != 0


@pytest.mark.root
def test_the_kernel_works_on_in_it(objects: Objects, write: Write, tmp_path: Path) -> None:
    """Mounted for writing: names come and go in an index, groups not yet begun are filled."""
    builder = FileSystemBuilder()
    many = builder.add(mode=0o40755)
    builder.link(0, b"many", many)
    file = builder.add(mode=0o100644, size=5, hash=objects.add(b"hello"))
    for number in range(20_000):
        builder.link(many, b"a name in an index %d" % number, file)
    disk, _ = write(builder.build(), 1100 * MIB)
    at = tmp_path / "mnt"
    at.mkdir()
    run("mount", "-o", f"loop,offset={PARTITION_OFFSET}", disk, at)
    try:
        for number in range(0, 20_000, 3):
            (at / "many" / f"a name in an index {number}").unlink()
        for number in range(3000):
            (at / "many" / f"quite another name {number}").write_text("x")
        for number in range(12):
            (at / f"large{number}").write_bytes(bytes([number]) * 70 * MIB)
        for number in range(0, 12, 2):
            (at / f"large{number}").unlink()
        (at / "tree").mkdir()
        for number in range(5000):
            (at / "tree" / f"{number}").mkdir()
    finally:
        run("umount", at)
    e2fsck(disk)


def test_it_can_be_grown(objects: Objects, tmp_path: Path) -> None:
    """By resize2fs to ten times its size: descriptors and journal stay in order."""
    path = tmp_path / "root"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    directory = os.open(objects.directory, os.O_RDONLY)
    os.ftruncate(fd, 128 * MIB)
    fs = tree_of(objects, b"x" * MIB, b"y" * 100)
    ext4.write_root(
        fd, fs, directory, facts=objects.facts, size=128 * MIB, uuid=bytes(range(16)), time=1
    )
    os.close(fd)
    os.close(directory)
    run("resize2fs", "-f", path, "1300M")
    e2fsck(path, 0)
    assert "Size: 1048576" in run("debugfs", "-R", "stat /file0", path)
