"""Flatten and compact: generated images, hard cases, a full disk, a kill."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.chain import Files
from smallstack.volumes.qcow2.errors import (
    DiskDamagedError,
    DiskUnsupportedError,
    DiskUnwritableError,
)
from smallstack.volumes.qcow2.rewrite import compact, flatten
from tests.volumes.qcow2.generate import random_image, write_chain, write_image
from tests.volumes.qcow2.reference import Reference
from tests.volumes.qcow2.test_edit import is_clean
from tests.volumes.qcow2.test_qemu import qemu_img

IMAGES = int(os.environ.get("SMALLSTACK_QCOW2_COMMITS", "16"))


def test_flatten_of_generated_chains(tmp_path: Path) -> None:
    for seed in range(IMAGES):
        rng = random.Random(seed)
        path, out = write_chain(tmp_path, 800_000 + seed), tmp_path / "out"
        with Files() as files:
            disk = files.open(path)
            kind = rng.choice(("raw", "qcow2", "qcow2"))
            packing = rng.choice(("none", "zlib", "zstd"))
            cluster = 1 << rng.choice((9, 12, 16, 18))
            flatten(disk, out, disk_format=kind, cluster_size=cluster, packing=packing)
        assert Reference(out).read() == Reference(path).read(), (seed, kind, packing, cluster)
        if kind == "qcow2":
            is_clean(out, seed, qemu=seed % 4 == 0)
            subprocess.run(["qemu-img", "compare", path, out], check=True, capture_output=True)
        for file in tmp_path.iterdir():
            file.unlink()


def test_plain_and_packed_clusters_at_the_border_of_a_table(tmp_path: Path) -> None:
    """64 clusters of 512 bytes to a table; what cannot be packed stands before what can."""
    path, out = tmp_path / "disk", tmp_path / "out"
    rng = random.Random(1)
    data = b"".join(
        rng.randbytes(512) if number % 64 > 60 or number % 64 == 5 else bytes([7]) * 512
        for number in range(300)
    )
    path.write_bytes(data)
    for packing in ("none", "zlib", "zstd"):
        with Files() as files:
            flatten(files.open(path), out, cluster_size=512, packing=packing)
        assert Reference(out).read() == data, packing
        is_clean(out, packing, qemu=True)


def test_compact_of_generated_images(tmp_path: Path) -> None:
    for seed in range(IMAGES * 2):
        rng = random.Random(900_000 + seed)
        image = random_image(rng)
        for state in image.states:
            for cluster in state.values():
                if cluster.data is not None and not cluster.packed and rng.random() < 0.3:
                    cluster.data = bytes(image.cluster)
        if rng.random() < 0.3 and not image.bitmaps:
            (tmp_path / "raw").write_bytes(rng.randbytes(rng.randrange(1, 200) * 512))
            image.backing = ("raw", "raw")
        path = tmp_path / "disk"
        write_image(image, path, rng)
        states = range(-1, len(image.states) - 1)
        want = [Reference(path, state).read() for state in states]
        with Files() as files:
            opened = files.open(path).image
            assert opened is not None
            about = (opened.snapshots(), opened.bitmaps())
            dirty = [opened.dirty_runs(i) for i in range(len(about[1]))]
        size = path.stat().st_size
        compact(path)
        assert path.stat().st_size <= size, seed
        assert [Reference(path, state).read() for state in states] == want, seed
        is_clean(path, seed, qemu=seed % 8 == 0)
        with Files() as files:
            opened = files.open(path).image
            assert opened is not None
            assert (opened.snapshots(), opened.bitmaps()) == about, seed
            assert [opened.dirty_runs(i) for i in range(len(about[1]))] == dirty, seed


def test_what_compacting_leaves_out(tmp_path: Path) -> None:
    """Clusters of a deleted snapshot, and zeros that were written."""
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 8M", path], check=True, capture_output=True)
    qemu_img("snapshot", "-c", "then", path)
    write = ["-c", "write -P 2 0 8M", "-c", "write -P 0 16M 8M"]
    subprocess.run(["qemu-io", *write, path], check=True, capture_output=True)
    qemu_img("snapshot", "-d", "then", path)
    before, after = compact(path)
    assert before > 16 << 20
    assert 8 << 20 < after < 9 << 20
    is_clean(path, "compacted", qemu=True)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(5120))
    with pytest.raises(DiskUnsupportedError, match="not a qcow2 image"):
        compact(path)
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with Files() as files, pytest.raises(DiskUnwritableError, match="it is what would be read"):
        flatten(files.open(path), path)
    with path.open("r+b") as file:
        file.seek(0x20000)
        file.write(bytes(8))
    with pytest.raises(DiskDamagedError, match="count is too low"):
        compact(path)
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\1")
    with pytest.raises(DiskUnsupportedError, match="dirty or corrupt"):
        compact(path)
    assert [p.name for p in tmp_path.iterdir()] == ["disk"]


@pytest.mark.root
def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    path, out = tmp_path / "disk", small_disk / "out"
    qemu_img("create", "-q", "-f", "qcow2", path, "128M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 80M", path], check=True, capture_output=True)
    for kind in ("raw", "qcow2"):
        with Files() as files, pytest.raises(DiskUnwritableError, match="No space left"):
            flatten(files.open(path), out, disk_format=kind)
    with pytest.raises(DiskUnwritableError, match="No space left"):
        compact(path, out)
    assert [p.name for p in small_disk.iterdir()] == ["lost+found"]


_FLATTEN = """
import os, signal, sys
from pathlib import Path
from smallstack.volumes.qcow2 import rewrite
from smallstack.volumes.qcow2.chain import Files
rewrite._STEP = 1 << 20
copy, left = rewrite.Builder.copy, [int(sys.argv[3])]
class Killed(rewrite.Builder):
    def copy(self, offset, most):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().copy(offset, most)
rewrite.Builder = Killed
with Files() as files:
    rewrite.flatten(files.open(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_killed_it_leaves_what_was_there(tmp_path: Path) -> None:
    path, out = tmp_path / "disk", tmp_path / "out"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 8M", path], check=True, capture_output=True)
    out.write_bytes(b"what was there")
    for number in (1, 2, 4):
        done = subprocess.run([sys.executable, "-c", _FLATTEN, path, out, str(number)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert out.read_bytes() == b"what was there"
    with Files() as files:
        flatten(files.open(path), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "out"]
    subprocess.run(["qemu-img", "compare", path, out], check=True, capture_output=True)
