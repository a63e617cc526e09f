"""What differs by the tables, against reading both disks, and against ``qemu-img compare``."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.chain import Disk, Files
from smallstack.volumes.qcow2.errors import BitmapNotFoundError
from smallstack.volumes.qcow2.extents import differing, since
from tests.volumes.qcow2.generate import random_image, write_chain, write_image
from tests.volumes.qcow2.reference import Reference
from tests.volumes.qcow2.test_qemu import qemu_img

IMAGES = int(os.environ.get("SMALLSTACK_QCOW2_IMAGES", "60"))
PARTS = 4


def disks(files: Files, path: Path) -> Iterator[tuple[Disk, Reference]]:
    """Every state that can be seen of a chain: snapshots, the present, the files below."""
    disk = files.open(path)
    yield disk, Reference(path)
    for index, snapshot in enumerate(disk.image.snapshots() if disk.image else []):
        yield files.open(path, snapshot=snapshot[0]), Reference(path, index)
    for layer in disk.layers[1:]:
        yield files.open(layer.path), Reference(layer.path)


def hold_together(old: tuple[Disk, Reference], new: tuple[Disk, Reference], told: object) -> None:
    """The extents are just those whose pieces differ by the reference's look-up."""
    found = list(differing(old[0], new[0]))
    steps = [step for disk, reference in (old, new) for step in [reference.chain()] if disk]
    step = min(layer.step for chain in steps for layer in chain)
    size = new[0].size
    differs = []
    for offset in range(0, size, step):
        was = old[1].piece(offset, step)
        differs.append(was != new[1].piece(offset, step))
    marked = [False] * len(differs)
    end = -1
    for offset, length, zero in found:
        assert offset >= end, told
        end = offset + length
        for at in range(offset // step, -(-end // step)):
            marked[at] = True
        kinds = {new[1].piece(at, step)[0] for at in range(offset, end, step)}
        assert kinds == {"zero" if zero else "data"}, (told, offset)
    assert marked == differs, told


@pytest.mark.parametrize("part", range(PARTS))
def test_extents_as_by_the_reference(tmp_path: Path, part: int) -> None:
    for seed in range(part, IMAGES, PARTS):
        path = write_chain(tmp_path, 200_000 + seed)
        with Files() as files:
            seen = list(disks(files, path))
            rng = random.Random(seed)
            pairs = [(a, b) for a in seen for b in seen if a is not b]
            for old, new in rng.sample(pairs, min(4, len(pairs))):
                hold_together(old, new, (seed, old[0].layers, new[0].layers))
            assert len(differing(seen[0][0], seen[0][0])) == 0
        for file in tmp_path.iterdir():
            file.unlink()


def test_two_overlays_of_one_base(tmp_path: Path) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        base = random_image(rng, backing=True)
        write_image(base, tmp_path / "base", rng)
        for name in ("left", "right"):
            image = random_image(rng, backing=True)
            image.backing = ("base", "qcow2")
            write_image(image, tmp_path / name, rng)
        with Files() as files:
            left, right = (
                (files.open(tmp_path / name), Reference(tmp_path / name))
                for name in ("left", "right")
            )
            hold_together(left, right, seed)


def test_empty_where_qemu_finds_no_difference(tmp_path: Path) -> None:
    """``qemu-img compare``: with the extents put into it, the old disk is the new one."""
    for seed in range(8):
        rng = random.Random(300 + seed)
        base = random_image(rng)
        write_image(base, tmp_path / "base", rng)
        top = random_image(rng, backing=True)
        top.size, top.backing = base.size, ("base", "qcow2")
        top.states = [{k: c for k, c in top.states[0].items() if k * top.cluster < top.size}]
        top.sizes = []
        write_image(top, tmp_path / "top", rng)
        patched = tmp_path / "patched"
        qemu_img("convert", "-O", "raw", tmp_path / "base", patched)
        with Files() as files, patched.open("r+b") as file:
            old, new = files.open(tmp_path / "base"), files.open(tmp_path / "top")
            for offset, length, _ in differing(old, new):
                file.seek(offset)
                file.write(new.view.read(offset, length))
        done = subprocess.run(
            ["qemu-img", "compare", tmp_path / "top", patched], capture_output=True, check=False
        )
        assert done.returncode == 0, (seed, done.stdout)


def test_tables_of_an_overlay_are_read_once_and_no_others(tmp_path: Path) -> None:
    """A terabyte with five clusters in three L2 tables: three tables are read."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1T")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    places = (0, 3 << 16, 600 << 30, (600 << 30) + (1 << 16), (1 << 40) - 65536)
    commands = [word for at in places for word in ("-c", f"write -P 1 {at} 65536")]
    subprocess.run(["qemu-io", *commands, top], check=True, capture_output=True)
    with Files() as files:
        found = differing(files.open(base), files.open(top))
    assert list(found) == [
        (0, 65536, False),
        (3 << 16, 65536, False),
        (600 << 30, 131072, False),
        ((1 << 40) - 65536, 65536, False),
    ]
    assert (found.tables, found.bytes) == (3, 5 * 65536)


def test_since_a_bitmap(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    subprocess.run(["qemu-io", "-c", "write 0 1M", path], check=True, capture_output=True)
    qemu_img("bitmap", "--add", path, "backup")
    commands = ["-c", "write 128k 64k", "-c", "write -z 512k 64k"]
    subprocess.run(["qemu-io", *commands, path], check=True, capture_output=True)
    with Files() as files:
        disk = files.open(path)
        found = [(128 << 10, 65536, False), (512 << 10, 65536, True)]
        assert list(since(disk, "backup")) == found
        with pytest.raises(BitmapNotFoundError, match="it has backup"):
            since(disk, "other")
    info = json.loads(qemu_img("info", "--output=json", path))
    assert info["format"] == "qcow2"
