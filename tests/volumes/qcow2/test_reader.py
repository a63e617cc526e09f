"""The reader against a slow one, on generated images; more of them by SMALLSTACK_QCOW2_IMAGES."""

import os
import random
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.chain import Disk, Files
from tests.volumes.qcow2.generate import write_chain
from tests.volumes.qcow2.reference import Reference

IMAGES = int(os.environ.get("SMALLSTACK_QCOW2_IMAGES", "60"))
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_reads_as_the_reference(tmp_path: Path, part: int) -> None:
    for seed in range(part, IMAGES, PARTS):
        path = write_chain(tmp_path, seed)
        with Files() as files:
            disk = files.open(path)
            same(disk, Reference(path), seed)
            for index, snapshot in enumerate(disk.image.snapshots() if disk.image else []):
                same(files.open(path, snapshot=snapshot[0]), Reference(path, index), seed)
            if disk.image is not None:
                verdict = disk.image.check()
                assert (verdict["corruptions"], verdict["leaks"]) == (0, 0), (seed, verdict)
        for file in tmp_path.iterdir():
            file.unlink()


def same(disk: Disk, reference: Reference, seed: int) -> None:
    want = reference.read()
    assert disk.size == len(want), seed
    assert disk.view.read(0, disk.size) == want, seed
    rng = random.Random(seed)
    for _ in range(10):
        at, length = rng.randrange(disk.size + 1), rng.randrange(100000)
        expected = want[at : at + length].ljust(length, b"\0")
        assert disk.view.read(at, length) == expected, (seed, at)
    end = 0
    for offset, length, kind, layer, host in disk.view.map():
        assert offset == end, seed
        end = offset + length
        if kind in ("hole", "zero"):
            assert not any(want[offset:end]), (seed, offset)
        elif kind == "data":
            stored = os.pread(disk.layers[layer].fd, length, host).ljust(length, b"\0")
            assert stored == want[offset:end], (seed, offset)
    assert end == disk.size, seed
