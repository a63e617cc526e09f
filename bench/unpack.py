"""``./dev bench unpack``: a Debian root written by our ext4 writer, by ``mke2fs -d``, and a copy.

Three ways over the same 17,000-odd files, in turns, everything in the page cache:

- *ours*: from packed tree and object files to a root disk, BLAKE3 of every object checked;
- *mke2fs*: ``mke2fs -d`` from the unpacked directory, same size, same features, its fsync left
  out;
- *copy*: ``cat`` of every object file into one file, which no unpacking can beat by much;
- *other size*: ours once more, a GiB larger: a brick of another size from the same image;
- *cp*: a copy of a brick that is there, what such a brick would cost with nothing changed in it.

Each writes a new file in the same directory; the file is removed and the disk is synced outside
the clock before the next begins. What ``fsync`` of our file takes is measured apart, and what
a VM's own layer over it takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from bench import encoded
from bench.debian import debian_root
from bench.results import BenchError, finish, median, spread, warm
from smallstack.control.namespace import private_mounts_command
from smallstack.images.build import StoreSink, from_directory
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import FileSystem
from smallstack.settings import cache_directory
from smallstack.volumes.brick import Brick, write_disk
from smallstack.volumes.layer import create_layer, fstab_line, root_label
from smallstack.volumes.layout import Layout
from smallstack.volumes.partition import PARTITION_OFFSET
from smallstack.volumes.size import root_size

FREE_BYTES: Final = 256 << 20
OTHER: Final = 1 << 30
LAYERS: Final = 30
_FEATURES: Final = "^resize_inode,metadata_csum_seed,^orphan_file"
_MKE2FS: Final = ["mke2fs", "-q", "-F", "-t", "ext4", "-i", "8192", "-O", _FEATURES]


class _Objects:
    """The object store as the writer sees the cache."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.directory = store.directory
        self.digests: dict[bytes, bytes] = {}

    def facts(self, hash_: bytes) -> tuple[bytes, int, int]:
        """What the object's bytes must hash to; each has a file of its own."""
        return self.digests[hash_], 0, 0

    async def drop(self, hashes: Iterable[bytes]) -> None:
        """Nothing is fetched here."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure ``args.n`` turns; prints a table and the headline, which is also returned.

    ``args.json`` (a Path or None) gets all samples. Needs root, for the owners of the files.
    """
    root = debian_root()
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="bench-unpack-") as name:
        return _measure(root, Path(name), args.n, args.json)


def _measure(root: Path, place: Path, turns: int, json_file: Path | None) -> dict[str, Any]:
    fs, objects = _image(root, place)
    _no_sync(place)
    size = root_size(fs.usage_estimate(), FREE_BYTES, 24)
    paths = _object_list(fs, objects, place)
    layouts: list[Layout] = []
    ways: dict[str, Callable[[Path], object]] = {
        "ours": lambda path: layouts.append(write_disk(path, fs, objects, size, bytes(20))),
        "mke2fs": lambda path: _mke2fs(path, root, size - PARTITION_OFFSET),
        "copy": lambda path: _cat(path, paths),
        "other size": lambda path: write_disk(path, fs, objects, size + OTHER, bytes(20)),
        "cp": lambda path: subprocess.run(["cp", "--sparse=auto", brick, path], check=True),
    }
    brick = place / "brick"
    write_disk(brick, fs, objects, size, bytes(20))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    fsync: list[float] = []
    layer: list[float] = []
    for turn in range(-1, turns):  # the first turn fills the page cache
        for step in range(len(ways)):  # each comes at every place in turn: see warm
            name = list(ways)[(turn + step) % len(ways)]
            path = place / "out"
            subprocess.run(["sync", "-f", place], check=True)
            warm(fs.total_data_bytes)
            started = time.perf_counter()
            ways[name](path)
            seconds = time.perf_counter() - started
            if turn >= 0:
                samples[name].append(seconds)
            if name == "ours":
                fsync.append(_fsync(path))
            if name in ("ours", "other size"):
                _check(path)
            if name == "ours" and turn == turns - 1:
                _compare(path, root, place)
                layer = [_layer(Brick(path, size, "bench"), place) for _ in range(LAYERS)]
            path.unlink()
        if turn >= 0:
            print("  ".join(f"{n} {s[-1] * 1000:7.1f} ms" for n, s in samples.items()), flush=True)
    peaks = _peaks(fs, objects, place, size)
    ours = median(samples["ours"])
    headline = {
        "n": turns,
        "inodes": len(fs),
        "data_bytes": fs.total_data_bytes,
        "median_s": ours,
        "mke2fs_s": median(samples["mke2fs"]),
        "copy_s": median(samples["copy"]),
        "fsync_s": median(fsync),
        "layer_ms": median([seconds * 1e3 for seconds in layer], 2),
        "plan_ms": median([layout.plan_ns / 1e6 for layout in layouts], 2),
        "ratio_mke2fs": round(median(samples["mke2fs"]) / ours, 2),
        "ratio_copy": round(ours / median(samples["copy"]), 2),
        "other_size_s": median(samples["other size"]),
        "ratio_cp": round(median(samples["other size"]) / median(samples["cp"]), 2),
        "peak_bytes": peaks[0].bytes,
        "peak_limit_bytes": peaks[0].limit,
        "peak_million_bytes": peaks[1].bytes,
        "peak_million_limit_bytes": peaks[1].limit,
    }
    print(f"{len(fs)} inodes, {fs.total_data_bytes >> 20} MiB of content")
    for name, values in samples.items():
        print(f"  {name:10} {spread(values)}")
    print(f"  {'layer':10} {spread(layer)}")
    for peak in peaks:
        print(
            f"  from the encoded image of {peak.inodes} inodes: {peak.seconds:.2f} s, "
            f"peak memory {peak.bytes / 1e6:.0f} MB, at most {peak.limit / 1e6:.0f} MB"
        )
    finish("unpack", headline, {**samples, "fsync": fsync, "layer": layer}, json_file)
    return headline


def _image(root: Path, place: Path) -> tuple[FileSystem, _Objects]:
    print(f"scanning {root}", file=sys.stderr, flush=True)
    store = ObjectStore(place / "objects", with_blake3=True)
    objects = _Objects(store)
    fs = from_directory(root, StoreSink(store))
    for hash_ in fs.objects():
        objects.digests[hash_] = store.verify(hash_).blake3
    return fs, objects


def _object_list(fs: FileSystem, objects: _Objects, place: Path) -> Path:
    """The object files in the order of the tree, for ``xargs -0``."""
    listed = place / "list"
    with listed.open("wb") as file:
        for _, index in fs.walk():
            hash_ = fs.inode(index).hash
            if hash_:
                file.write(os.fsencode(objects.store.path(hash_)) + b"\0")
    return listed


def _mke2fs(path: Path, root: Path, size: int) -> None:
    subprocess.run(
        [*_MKE2FS, "-d", str(root), "-E", "nodiscard", str(path), f"{size >> 10}k"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "LD_PRELOAD": str(path.with_name("nosync.so"))},
    )


def _no_sync(place: Path) -> None:
    """A library that takes ``fsync`` out of mke2fs: the others do not sync inside the clock."""
    source = place / "nosync.c"
    source.write_text("int fsync(int fd) { (void)fd; return 0; }\n")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(place / "nosync.so"), str(source)], check=True
    )


def _cat(path: Path, listed: Path) -> None:
    with path.open("wb") as out:
        subprocess.run(
            ["xargs", "-0", "-s", "1000000", "-a", listed, "cat"], stdout=out, check=True
        )


def _fsync(path: Path) -> float:
    fd = os.open(path, os.O_RDONLY)
    try:
        started = time.perf_counter()
        os.fsync(fd)
        return time.perf_counter() - started
    finally:
        os.close(fd)


def _layer(brick: Brick, place: Path) -> float:
    """Seconds for what a create does over its brick."""
    path = place / "layer"
    label = root_label(bytes([198, 51, 100, 2]))
    started = time.perf_counter()
    create_layer(
        brick,
        path,
        label=label,
        files={"/etc/hostname": b"vm\n", "/root/.ssh/authorized_keys": b"key\n"},
        fstab=fstab_line(label),
        initial_image="debian",
    )
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def _check(path: Path) -> None:
    """Raises unless ``e2fsck -fn`` finds nothing; tells its summary."""
    done = subprocess.run(
        ["e2fsck", "-fn", f"{path}?offset={PARTITION_OFFSET}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(detail=f"e2fsck -fn: {done.stdout}{done.stderr}")
    print(f"  e2fsck -fn: {done.stdout.splitlines()[-1].partition(': ')[2]}", file=sys.stderr)


_COMPARE: Final = """
mount -o ro,loop,offset="$1" "$2" "$4"
rsync -aHAXnc --delete --itemize-changes "$3/" "$4/"
rsync -aHAXnc --delete --itemize-changes "$4/" "$3/"
"""


def _compare(path: Path, root: Path, place: Path) -> None:
    """Raises unless rsync finds nothing to change, both ways, through the kernel's own mount.

    The mount is in a namespace of its own and goes with it.
    """
    mounted = place / "mounted"
    mounted.mkdir()
    script = ["sh", "-euc", _COMPARE, "compare", str(PARTITION_OFFSET)]
    done = subprocess.run(
        private_mounts_command([*script, str(path), str(root), str(mounted)]),
        capture_output=True,
        text=True,
        check=False,
    )
    mounted.rmdir()
    if done.returncode != 0 or done.stdout:
        raise BenchError(detail=f"rsync -aHAXnc: {done.stdout}{done.stderr}")
    print("  rsync -aHAXnc --delete --itemize-changes, both ways: nothing", file=sys.stderr)


def _peaks(fs: FileSystem, objects: _Objects, place: Path, size: int) -> list[encoded.Peak]:
    """Peak memory with this image, and with one of a million inodes. Raises when it is too much."""
    encoded.save(place, fs, objects.digests)
    peaks = [encoded.measure(place, size)]
    _check(place / encoded.DISK)
    million = place / "million"
    million.mkdir()
    encoded.save_million(million)
    peaks.append(encoded.measure(million, encoded.MILLION_BYTES))
    _check(million / encoded.DISK)
    for peak in peaks:
        if peak.bytes > peak.limit:
            raise BenchError(detail=f"{peak.bytes} bytes of memory for {peak.inodes} inodes")
    return peaks
