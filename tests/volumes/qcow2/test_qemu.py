"""The reader against qemu-img; more images by SMALLSTACK_QCOW2_QEMU_IMAGES."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from smallstack.volumes.qcow2.chain import Disk, Files
from tests.volumes.qcow2.generate import write_chain

IMAGES = int(os.environ.get("SMALLSTACK_QCOW2_QEMU_IMAGES", "24"))
PARTS = 2


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout


def qemu_check(path: Path) -> dict[str, Any]:
    """What ``qemu-img check`` counts; it ends with 2 for corruption and 3 for leaks."""
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", "-f", "qcow2", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 2, 3}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_reads_maps_and_counts_as_qemu(tmp_path: Path, part: int) -> None:
    for seed in range(part, IMAGES, PARTS):
        path = write_chain(tmp_path, 100_000 + seed)
        with Files() as files:
            disk = files.open(path)
            same_map(disk, json.loads(qemu_img("map", "--output=json", path)), seed)
            out = tmp_path / "out"
            if disk.image is not None:
                theirs, ours = qemu_check(path), disk.image.check()
                assert theirs.get("corruptions", 0) == theirs.get("leaks", 0) == 0, seed
                assert (ours["corruptions"], ours["leaks"]) == (0, 0), (seed, ours)
                for name in ("allocated", "compressed", "total"):
                    assert theirs.get(f"{name}-clusters", 0) == ours[f"{name}_clusters"], seed
                assert theirs["image-end-offset"] == ours["image_end"], seed
            qemu_img("convert", "-O", "raw", path, out)
            assert disk.view.read(0, disk.size) == out.read_bytes(), seed
            for snapshot in disk.image.snapshots() if disk.image else []:
                qemu_img("convert", "-l", snapshot[0], "-O", "raw", path, out)
                then = files.open(path, snapshot=snapshot[1])
                assert then.view.read(0, then.size) == out.read_bytes(), (seed, snapshot)
        for file in tmp_path.iterdir():
            file.unlink()


def same_map(disk: Disk, theirs: list[dict[str, Any]], seed: int) -> None:
    """Byte for byte: data or zeros, in which layer, at which place."""
    ours: list[tuple[int, int, bool, int | None, int | None]] = []
    for offset, length, kind, layer, host in disk.view.map():
        data = kind in ("data", "compressed")
        place = host if kind == "data" else None
        ours.append((offset, length, data, layer if data else None, place))
    edges = sorted({o[0] for o in ours} | {t["start"] for t in theirs})
    assert sum(o[1] for o in ours) == sum(t["length"] for t in theirs) == disk.size, seed
    for at in edges:
        mine = next(o for o in ours if o[0] <= at < o[0] + o[1])
        its = next(t for t in theirs if t["start"] <= at < t["start"] + t["length"])
        if its["present"] and disk.layers[its["depth"]].image is None:
            continue  # a raw file's holes are its own
        assert mine[2] == its["data"], (seed, at)
        if mine[2]:
            assert mine[3] == its["depth"], (seed, at)
            place = None if mine[4] is None else mine[4] + at - mine[0]
            there = its["offset"] + at - its["start"] if "offset" in its else None
            assert place == there, (seed, at)


def test_images_that_qemu_wrote(tmp_path: Path) -> None:
    """Writes, discards, compressed clusters, snapshots and bitmaps by qemu-io itself."""
    rng = random.Random(7)
    for options, cluster in (
        ("compat=0.10", 65536),
        ("cluster_size=4k", 4096),
        ("extended_l2=on,compression_type=zstd", 65536),
    ):
        path = tmp_path / f"{options}.qcow2".replace(",", ".")
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "8M")
        for epoch in range(3):
            commands: list[str] = []
            for _ in range(8):
                at, length = rng.randrange(100) << 16, rng.choice((4096, 65536, 200704))
                kind = rng.choice(("write -P 5", "write -P 9", "write -z", "discard"))
                commands += ["-c", f"{kind} {at} {length}"]
            commands += ["-c", f"write -c -P 3 {(110 + epoch) << 16} {cluster}"]
            subprocess.run(["qemu-io", *commands, path], check=True, capture_output=True)
            qemu_img("snapshot", "-c", f"moment{epoch}", path)
        out = tmp_path / "out"
        with Files() as files:
            for name in (None, "moment0", "moment1", "moment2"):
                disk = files.open(path, snapshot=name)
                qemu_img("convert", *(("-l", name) if name else ()), "-O", "raw", path, out)
                assert disk.view.read(0, disk.size) == out.read_bytes(), (options, name)
            image = files.open(path).image
            assert image is not None
            assert image.check()["corruptions"] == 0


def test_a_bitmap_that_qemu_wrote(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", "-g", "4096", path, "since")
    writes = ("write 1M 4k", "write 5000k 9000", "write 60M 2M")
    commands = [word for write in writes for word in ("-c", write)]
    subprocess.run(["qemu-io", *commands, path], check=True, capture_output=True)
    with Files() as files:
        image = files.open(path).image
        assert image is not None
        assert image.bitmaps() == [("since", 4096, True)]
        assert image.dirty_runs(0) == [(1 << 20, 4096), (5000 << 10, 12288), (60 << 20, 2 << 20)]
