"""``./dev bench diff``: what differs between two disks, and the stream of it.

**Extents.** A disk of 1 TiB, every cluster allocated, of which 1 GiB was changed since in scattered
clusters of 64 KiB: once in an overlay, once behind an internal snapshot. Ours opens the files and
compares tables; beside it, in turns, what can be had from ``qemu-img map --output=json``: of an
overlay the extents of depth 0; of a moment, which it cannot be asked for, the maps of two files
that show the two moments, compared by their places. Both give the same extents, which is checked.
All tables are in the page cache. Then the same with less changed, as scattered as before: the cost
follows what changed.

**Stream.** An overlay of random bytes, of program text (the machine code of this machine's
programs and libraries), and of both in turns, cluster by cluster: read from the page cache, hashed,
packed by zstd at the named level, thrown away; then applied to a raw disk. MB/s are of data.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from bench.results import BenchError, finish, median, spread
from bench.sparse_qcow2 import CLUSTER, empty, full, overlay, present_only, with_snapshot
from smallstack.settings import cache_directory
from smallstack.volumes.qcow2.apply import apply_raw
from smallstack.volumes.qcow2.chain import Files
from smallstack.volumes.qcow2.extents import differing
from smallstack.volumes.qcow2.stream import (
    DEFAULT_LEVEL,
    THREADS,
    StreamReader,
    plan_stream,
    write_stream,
)

DISK: Final = 1 << 40
CHANGED: Final = 1 << 30
STREAM: Final = 256 << 20
Extents = list[tuple[int, int]]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure ``args.n`` turns; prints tables and the headline, which is also returned."""
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="bench-diff-") as name:
        place = Path(name)
        tables = _extents(place, args.n, samples)
        sizes = _sizes(place, args.n, samples)
        streams = _streams(place, max(2, args.n // 2), samples)
    slower = max(median(samples["overlay"]), median(samples["snapshot"]))
    headline = {
        "n": args.n,
        "disk_bytes": DISK,
        "changed_bytes": CHANGED,
        "extents_ms": round(slower * 1000, 1),
        "overlay_ms": round(median(samples["overlay"]) * 1000, 1),
        "snapshot_ms": round(median(samples["snapshot"]) * 1000, 1),
        "ratio_qemu_img": round(
            min(
                median(samples["qemu overlay"]) / median(samples["overlay"]),
                median(samples["qemu moments"]) / median(samples["snapshot"]),
            ),
            1,
        ),
        "tables_read": tables,
        "extents_ms_by_mib": sizes,
        "zstd_level": DEFAULT_LEVEL,
        "threads": THREADS,
        **streams,
    }
    print(f"what differs on {DISK >> 40} TiB with {CHANGED >> 20} MiB changed")
    for key, values in samples.items():
        if not key.endswith("MB/s"):
            print(f"  {key:22} {spread(values)}")
    for key, values in samples.items():
        if key.endswith("MB/s"):
            print(f"  {key:30} {median(values, 0):8.0f} ({min(values):.0f} … {max(values):.0f})")
    _picture(samples, sizes, args.picture)
    finish("diff", headline, samples, args.json)
    return headline


def _extents(place: Path, turns: int, samples: dict[str, list[float]]) -> int:
    changed = sorted(random.Random(1).sample(range(DISK // CLUSTER), CHANGED // CLUSTER))
    base, top, both, now = (place / name for name in ("base", "top", "both", "now"))
    print("making disks of tables", file=sys.stderr, flush=True)
    full(base, DISK)
    overlay(top, DISK, changed, base)
    with_snapshot(both, DISK, changed)
    present_only(now, DISK, changed)
    ways: dict[str, Callable[[], Sequence[tuple[int, ...]]]] = {
        "overlay": lambda: _ours(base, None, top),
        "qemu overlay": lambda: _qemu_overlay(top),
        "snapshot": lambda: _ours(both, "then", both),
        "qemu moments": lambda: _qemu_moments(base, now),
    }
    want: Extents = []
    for cluster in changed:
        if want and sum(want[-1]) == cluster * CLUSTER:
            want[-1] = (want[-1][0], want[-1][1] + CLUSTER)
        else:
            want.append((cluster * CLUSTER, CLUSTER))
    for path in (base, top, both, now):
        _warm(path)
    for turn in range(-1, turns):
        for name, way in ways.items():
            started = time.perf_counter()
            found = way()
            seconds = time.perf_counter() - started
            if [tuple(extent[:2]) for extent in found] != want:
                raise BenchError(detail=f"{name}: {len(found)} extents, expected {len(want)}")
            if turn >= 0:
                samples.setdefault(name, []).append(seconds)
    with Files() as files:
        tables = differing(files.open(both, snapshot="then"), files.open(both)).tables
    for path in (top, both, now):
        path.unlink()
    return tables


def _ours(old: Path, snapshot: str | None, new: Path) -> Sequence[tuple[int, ...]]:
    with Files() as files:
        return differing(files.open(old, snapshot=snapshot), files.open(new))


def _map(path: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["qemu-img", "map", "--output=json", "-f", "qcow2", str(path)],
        capture_output=True,
        check=True,
    )
    return cast(list[dict[str, Any]], json.loads(done.stdout))


def _qemu_overlay(top: Path) -> Extents:
    return _joined((e["start"], e["length"]) for e in _map(top) if e["depth"] == 0)


def _qemu_moments(then: Path, now: Path) -> Extents:
    """Where two maps do not show the same place: both are walked once."""

    def differs() -> Iterator[tuple[int, int]]:
        left, right = iter(_map(then)), iter(_map(now))
        a, b = next(left, None), next(right, None)
        at = 0
        while a is not None and b is not None:
            end = min(a["start"] + a["length"], b["start"] + b["length"])
            place = a["offset"] - a["start"] if a["data"] else None
            if place != (b["offset"] - b["start"] if b["data"] else None):
                yield at, end - at
            at = end
            if a["start"] + a["length"] == end:
                a = next(left, None)
            if b["start"] + b["length"] == end:
                b = next(right, None)

    return _joined(differs())


def _joined(extents: Iterator[tuple[int, int]]) -> Extents:
    out: Extents = []
    for offset, length in extents:
        if out and sum(out[-1]) == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return out


def _warm(path: Path) -> None:
    """All that the file holds into the page cache; holes are passed."""
    fd, at = os.open(path, os.O_RDONLY), 0
    try:
        end = os.fstat(fd).st_size
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            at += len(os.pread(fd, 1 << 20, at)) or 1
    finally:
        os.close(fd)


def _sizes(place: Path, turns: int, samples: dict[str, list[float]]) -> dict[str, float]:
    """As scattered, but in a sixteenth, a quarter and all of the disk."""
    base, found = place / "base", {}
    for part in (16, 4, 1):
        reach, count = DISK // CLUSTER // part, CHANGED // CLUSTER // part
        top = place / f"top{part}"
        overlay(top, DISK, sorted(random.Random(part).sample(range(reach), count)), base)
        _warm(top)
        name = f"{CHANGED // part >> 20} MiB changed"
        for _ in range(turns + 1):
            started = time.perf_counter()
            _ours(base, None, top)
            samples.setdefault(name, []).append(time.perf_counter() - started)
        del samples[name][0]
        found[str(CHANGED // part >> 20)] = round(median(samples[name]) * 1000, 2)
        top.unlink()
    base.unlink()
    return found


def _streams(place: Path, turns: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    chance = random.Random(2)
    noise = b"".join(chance.randbytes(1 << 20) for _ in range(STREAM >> 20))
    text = _program_text(STREAM)
    step = CLUSTER
    mixed = b"".join(
        (text if at // step % 2 else noise)[at : at + step] for at in range(0, STREAM, step)
    )
    size = STREAM * 8
    base, raw = place / "stream-base", place / "raw"
    empty(base, size)
    clusters = sorted(random.Random(3).sample(range(size // CLUSTER), STREAM // CLUSTER))
    figures: dict[str, Any] = {}
    for kind, data in (("mixed", mixed), ("random", noise), ("text", text)):
        top = place / f"stream-{kind}"
        first = overlay(top, size, clusters, base)
        with top.open("r+b") as file:
            file.seek(first)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or writing back goes on beside what is measured
        _send(base, top, DEFAULT_LEVEL, THREADS, Path(os.devnull))
        for level in (DEFAULT_LEVEL, 3) if kind == "mixed" else (DEFAULT_LEVEL,):
            for threads in (
                (THREADS, 1) if kind == "mixed" and level == DEFAULT_LEVEL else (THREADS,)
            ):
                name = f"{kind}, level {level}, {threads} threads, MB/s"
                for _ in range(turns):
                    seconds, sent = _send(base, top, level, threads, Path(os.devnull))
                    samples.setdefault(name, []).append(STREAM / seconds / 1e6)
                figures[f"{kind}_{level}_{threads}"] = (
                    median(samples[name], 0),
                    round(sent / STREAM, 3),
                )
        if kind == "mixed":
            stream = place / "stream"
            _send(base, top, DEFAULT_LEVEL, THREADS, stream)
            for _ in range(turns):
                raw.unlink(missing_ok=True)
                with raw.open("wb") as file:
                    file.truncate(size)
                started = time.perf_counter()
                with stream.open("rb") as file, stream.open("rb") as again:
                    apply_raw(StreamReader(file, "stream"), raw, StreamReader(again, "stream"))
                rate = STREAM / (time.perf_counter() - started) / 1e6
                samples.setdefault("apply, checked and synced, MB/s", []).append(rate)
            done = subprocess.run(["qemu-img", "compare", top, raw], check=False)
            if done.returncode:
                raise BenchError(detail="the applied disk is not the new one")
        top.unlink()
    level = DEFAULT_LEVEL
    return {
        "stream_MBps": figures[f"mixed_{level}_{THREADS}"][0],
        "stream_one_thread_MBps": figures[f"mixed_{level}_1"][0],
        "stream_random_MBps": figures[f"random_{level}_{THREADS}"][0],
        "stream_text_MBps": figures[f"text_{level}_{THREADS}"][0],
        "stream_level_3_MBps": figures[f"mixed_3_{THREADS}"][0],
        "apply_MBps": median(samples["apply, checked and synced, MB/s"], 0),
        "stored_by_kind": {
            kind: figures[f"{kind}_{level}_{THREADS}"][1] for kind in ("mixed", "random", "text")
        },
    }


def _send(old: Path, new: Path, level: int, threads: int, out: Path) -> tuple[float, int]:
    with Files() as files, out.open("wb") as file:
        started = time.perf_counter()
        before, after = files.open(old), files.open(new)
        plan = plan_stream(before, after, differing(before, after))
        sent = write_stream(
            files, before, after, plan, cast(BinaryIO, file), level=level, threads=threads
        )
        return time.perf_counter() - started, sent


def _program_text(size: int) -> bytes:
    """The content of programs and libraries here, over again if that is less than ``size``."""
    pieces, have = [], 0
    for directory in ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib", "/usr/sbin"):
        for path in sorted(Path(directory).glob("*")):
            if have >= size:
                break
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if data[:4] == b"\x7fELF":
                    pieces.append(data)
                    have += len(data)
    joined = b"".join(pieces)
    return (joined * -(-size // len(joined)))[:size]


def _picture(samples: dict[str, list[float]], sizes: dict[str, float], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = ("overlay", "qemu overlay", "snapshot", "qemu moments")
    colours = ("#3b6ea8", "#c9c9c9", "#3b6ea8", "#c9c9c9")
    values = [median(samples[name]) * 1000 for name in names]
    bars = left.bar(range(4), values, color=colours)
    left.bar_label(bars, [f"{value:.0f}" for value in values])
    left.set_xticks(range(4), ["overlay", "by qemu-img map", "snapshot", "by two maps"])
    left.set_yscale("log")
    left.set_ylabel("ms")
    left.set_title("1 TiB, 1 GiB changed")
    places = [float(size) for size in sizes]
    right.plot(places, list(sizes.values()), "o-", color="#3b6ea8")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.set_xlabel("MiB changed")
    right.set_ylabel("ms")
    right.set_title("cost follows what changed")
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
