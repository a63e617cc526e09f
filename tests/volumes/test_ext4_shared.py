"""A file system whose files can share blocks: a brick shares its objects', and is the same."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes.brick import write_disk
from smallstack.volumes.errors import CorruptObjectError
from tests.volumes.conftest import MIB, SEED
from tests.volumes.disks import e2fsck, run
from tests.volumes.trees import Objects

pytestmark = pytest.mark.root
SIZES = (1, 4096, 65_535, 65_536, 65_537, 3 * MIB, 3 * MIB + 4095, 20 * MIB + 1)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """The mount point of an XFS of 512 MiB in a loop file."""
    image, at = tmp_path / "xfs.img", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    at.mkdir()
    run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        run("umount", at)


def tree_over(stores: list[Objects]) -> FileSystem:
    """Files of every size that matters, with a hole of zeros in the largest, in every store."""
    noise = random.Random(7)
    builder = FileSystemBuilder(mtime_ns=10**18)
    for size in SIZES:
        data = bytearray(noise.randbytes(size))
        if size > 10 * MIB:
            data[5 * MIB : 9 * MIB] = bytes(4 * MIB)
        (hash_,) = {store.add(bytes(data)) for store in stores}
        file = builder.add(mode=0o100644, size=size, hash=hash_, mtime_ns=10**18)
        builder.link(0, b"file-%d" % size, file)
    return builder.build()


def used(at: Path) -> int:
    run("sync", "-f", at)
    space = os.statvfs(at)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def test_shares_blocks_and_is_the_same(xfs: Path, tmp_path: Path) -> None:
    here, there = Objects(tmp_path / "objects"), Objects(xfs / "objects")
    fs = tree_over([here, there])
    before = used(xfs)
    plain = write_disk(tmp_path / "disk", fs, here, 256 * MIB, SEED)
    shared = write_disk(xfs / "disk", fs, there, 256 * MIB, SEED)
    run("cmp", tmp_path / "disk", xfs / "disk")
    e2fsck(xfs / "disk")
    large = sum(size // 4096 * 4096 for size in SIZES if size > 65_536)
    assert plain.written - shared.written == large
    # The data take no room again; the journal and tables of the new file system do.
    assert used(xfs) - before < shared.written + 2 * MIB


def test_a_damaged_object_is_still_found(xfs: Path) -> None:
    objects = Objects(xfs / "objects")
    fs = tree_over([objects])
    hash_ = next(i.hash for i in map(fs.inode, range(len(fs))) if i.size == 3 * MIB)
    digits = hash_.hex()
    path = xfs / "objects" / digits[:2] / digits[2:4] / digits[4:]
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"damage")
    with pytest.raises(CorruptObjectError, match=digits):
        write_disk(xfs / "disk", fs, objects, 256 * MIB, SEED)
    path.unlink()
    path.write_bytes(bytes(MIB))
    with pytest.raises(CorruptObjectError):
        write_disk(xfs / "again", fs, objects, 256 * MIB, SEED)
