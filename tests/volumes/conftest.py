"""What the tests of volumes share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smallstack.proto.filesystem import FileSystem
from smallstack.volumes.brick import write_disk
from smallstack.volumes.layout import Layout
from tests.volumes.disks import run
from tests.volumes.trees import Objects

SEED = bytes(range(20))
MIB = 1 << 20
Write = Callable[..., tuple[Path, Layout]]


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


@pytest.fixture
def write(tmp_path: Path, objects: Objects) -> Write:
    """Writes a tree as a root disk; the disk and its layout."""

    def write_it(fs: FileSystem, size: int = 64 * MIB) -> tuple[Path, Layout]:
        path = tmp_path / "disk"
        path.unlink(missing_ok=True)
        return path, write_disk(path, fs, objects, size, SEED)

    return write_it


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of an ext4 file system of 48 MiB in a loop file."""
    image, at = tmp_path / "small.img", tmp_path / "small"
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", image)
    at.mkdir()
    run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        run("umount", at)
