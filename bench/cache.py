"""``./dev bench cache``: the agent's object cache on the objects of a real Debian root.

In turns, everything in the page cache, each way into files that did not exist before:

- *entry*: bytes in memory become checked objects: cut, SHA-512 and BLAKE3 in the lanes of the
  processor, into packs, those above 1 MiB into a file each, the index;
- *sha512sum*: ``sha512sum`` of the same object files, one after the other, which keeps nothing;
- *copy*: ``cp -r`` of the same object files, a file for each;
- *miss*: all of them fetched from an image server, a process of its own, over its Unix socket (in
  clear text: TLS has told both who the other is), as an agent does on one machine with it;
  *zstd*: the same, compressed on the wire, which pays off between machines only;
- *hit*: all of them asked for again;
- *eviction*: a cache that is opened with half its quota lets half of them go;
- *check_1*, *check_2*: what ``check-store`` does, with one thread and with two.

Nothing syncs inside the clock. Every turn has an ext4 file system of its own in a loop file: one
that is in use is slow for minutes in making files where many have been removed (the kernel's
``recently_deleted`` took half of the time of some runs), for us and for ``cp`` alike.

``python -m bench.cache N JSON PICTURE`` is what runs inside, in a mount namespace of its own.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import picture
from bench.debian import debian_root
from bench.results import BenchError, finish, median, spread
from smallstack.control.namespace import private_mounts_command
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials
from smallstack.images.build import StoreSink, from_directory
from smallstack.objects.cache import INDEX, ObjectCache
from smallstack.objects.check import check_objects
from smallstack.objects.fetch import BATCH
from smallstack.objects.index import Index
from smallstack.objects.intake import Intake
from smallstack.objects.packs import Packs
from smallstack.objects.peer import Compression, PeerSource
from smallstack.objects.store import ObjectStore
from smallstack.settings import cache_directory

QUOTA: Final = 1 << 40
DISK: Final = 8 << 30


def run(args: argparse.Namespace) -> None:
    """Measure ``args.n`` turns; prints a table and the headline.

    ``args.json`` (a Path or None) gets all samples, ``args.picture`` a picture. Needs root. Raises
    BenchError.
    """
    debian_root()
    inside = [sys.executable, "-m", "bench.cache"]
    arguments = [str(args.n), str(args.json or ""), str(args.picture)]
    done = subprocess.run(private_mounts_command([*inside, *arguments]), check=False)
    if done.returncode:
        raise BenchError(detail=f"the measurement ended with status {done.returncode}")


def main() -> None:
    """What runs inside."""
    turns, json_file, picture_file = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="bench-cache-") as name:
        file = Path(json_file) if json_file else None
        _measure(debian_root(), Path(name), int(turns), file, Path(picture_file))


def _measure(
    root: Path, place: Path, turns: int, json_file: Path | None, picture_file: Path
) -> None:
    objects, paths = _objects(root, place)
    total = sum(objects.values())
    samples: dict[str, list[float]] = {}
    with _image_server(place) as peer:
        ways = _ways(place, objects, paths, peer)
        for turn in range(-1, turns):  # the first turn fills the page cache
            found: dict[str, float] = {}
            with _fresh_disk(place) as made:
                for step in range(len(ways)):  # each comes first, second, …
                    name = list(ways)[(turn + step) % len(ways)]
                    _settle(made)
                    found[name] = ways[name](made / name)
                found.update(_of_one_cache(made / "entry", objects, peer))
            if turn < 0:
                continue
            for name, seconds in found.items():
                samples.setdefault(name, []).append(seconds)
            print("  ".join(f"{n} {s[-1]:.2f} s" for n, s in samples.items()), flush=True)
    middle = {name: median(values) for name, values in samples.items()}
    headline = {
        "n": turns,
        "objects": len(objects),
        "data_bytes": total,
        **{f"{name}_s": seconds for name, seconds in middle.items()},
        "entry_objects_per_s": round(len(objects) / middle["entry"]),
        "entry_MBps": round(total / middle["entry"] / 1e6),
        "miss_objects_per_s": round(len(objects) / middle["miss"]),
        "miss_MBps": round(total / middle["miss"] / 1e6),
        "hit_objects_per_s": round(len(objects) / middle["hit"]),
        "eviction_objects_per_s": round(len(objects) / 2 / middle["eviction"]),
        "ratio_sha512sum": round(middle["entry"] / middle["sha512sum"], 2),
        "ratio_copy": round(middle["entry"] / middle["copy"], 2),
        "ratio_miss": round(middle["miss"] / middle["entry"], 2),
    }
    print(f"{len(objects)} objects, {total >> 20} MiB")
    for name, values in samples.items():
        rates = (
            f"{len(objects) / middle[name]:9.0f} objects/s {total / middle[name] / 1e6:6.0f} MB/s"
        )
        print(f"  {name:10} {spread(values):32} {rates if name != 'eviction' else ''}")
    picture.times(middle, f"{len(objects)} objects, {total >> 20} MiB", picture_file)
    finish("cache", headline, samples, json_file)


def _objects(root: Path, place: Path) -> tuple[dict[bytes, int], Path]:
    """The objects of the root in an image server's store, and a list of their files."""
    print(f"scanning {root}", file=sys.stderr, flush=True)
    store = ObjectStore(place / "server/objects")
    objects = from_directory(root, StoreSink(store)).objects()
    store.close()
    listed = place / "list"
    with listed.open("wb") as file:
        for hash_ in objects:
            file.write(os.fsencode(store.path(hash_)) + b"\0")
    return objects, listed


@contextmanager
def _fresh_disk(place: Path) -> Iterator[Path]:
    """A new file system that goes with everything in it."""
    image, at = place / "disk", place / "at"
    at.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        image.unlink()


def _settle(place: Path) -> None:
    subprocess.run(["sync", "-f", place], check=True)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ways(
    place: Path, objects: Mapping[bytes, int], listed: Path, peer: "Peer"
) -> dict[str, Callable[[Path], float]]:
    """Each makes a directory, and tells its seconds."""
    names = listed.read_bytes().rstrip(b"\0").split(b"\0")
    order = list(objects.items())

    def entry(where: Path) -> float:
        # A fifth at a time, so that the bytes are not all in memory.
        store, index = ObjectStore(where, with_blake3=True, flat=True), Index(where / INDEX)
        index.load()
        packs = Packs(where, ())
        seconds = 0.0
        for start in range(0, len(order), 4096):
            data = b"".join(_read(name) for name in names[start : start + 4096])
            intake = Intake(store, index, order[start : start + 4096], "memory", packs)
            seconds += _timed(lambda: _feed(intake, data))  # noqa: B023 - it is over before
        index.close()
        store.close()
        return seconds

    def sha512sum(_: Path) -> float:
        command: list[str | Path] = ["xargs", "-0", "-s", "1000000", "-a", listed, "sha512sum"]
        with (place / "sums").open("wb") as out:
            return _timed(lambda: subprocess.run(command, stdout=out, check=True))

    def copy(where: Path) -> float:
        command: list[str | Path] = ["cp", "-r", "--reflink=never", place / "server/objects", where]
        return _timed(lambda: subprocess.run(command, check=True))

    def miss(compression: Compression) -> Callable[[Path], float]:
        def fetch(where: Path) -> float:
            cache = ObjectCache(where, QUOTA)
            work = cache.ensure(objects, peer.source(compression))
            seconds = _timed(lambda: asyncio.run(work))
            cache.close()
            return seconds

        return fetch

    return {
        "entry": entry,
        "sha512sum": sha512sum,
        "copy": copy,
        "miss": miss("none"),
        "zstd": miss("zstd"),
    }


def _read(name: bytes) -> bytes:
    with open(name, "rb", buffering=0) as file:  # noqa: PTH123 - many
        return file.read()


def _feed(intake: Intake, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(data), BATCH):
        intake.feed(bytes(view[start : start + BATCH]))
    intake.finish()
    if intake.error is not None:
        raise intake.error


def _of_one_cache(directory: Path, objects: Mapping[bytes, int], peer: "Peer") -> dict[str, float]:
    """What a cache that holds everything does: checks, hits and evicts."""
    found = {
        f"check_{jobs}": _timed(
            lambda: check_objects(directory, directory / INDEX, jobs=jobs)  # noqa: B023
        )
        for jobs in (1, 2)
    }
    cache = ObjectCache(directory, QUOTA)
    work = cache.ensure(objects, peer.source("none"))
    found["hit"] = _timed(lambda: asyncio.run(work))
    cache.close()
    cache = ObjectCache(directory, sum(objects.values()) // 2)
    found["eviction"] = _timed(lambda: asyncio.run(cache.sweep()))
    cache.close()
    return found


class Peer:
    """The image server, and who asks it."""

    def __init__(self, address: str, credentials: ClientCredentials) -> None:
        self.address = address
        self.credentials = credentials

    def source(self, compression: Compression) -> PeerSource:
        """A source that dials for each transfer."""
        return PeerSource.dialling(self.address, self.credentials, compression)


@contextmanager
def _image_server(place: Path) -> Iterator[Peer]:
    """An image server over the store, a process of its own, until the block ends."""
    authority = pki.make_ca(place / "ca")
    pki.issue(authority, "server", server=True).write(place / "pair")
    pki.issue(authority, "agent", methods=["ObjectServer.GetObjects"]).write(place / "agent")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        address = f"\0smallstack-bench-{os.getpid()}"
        notify.bind(address)
        notify.settimeout(60)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "smallstack.cli.smallstack", "imageserver"),
                *("--state-dir", place / "server", "--listen", "127.0.0.1"),
                *("--port", str(port), "--log-level", "warning"),
                *("--ca-file", place / "ca/ca.pem"),
                *("--cert-file", place / "pair/cert.pem", "--key-file", place / "pair/key.pem"),
            ],
            env={**os.environ, "NOTIFY_SOCKET": "@" + address[1:]},
        )
        try:
            notify.recv(4096)
            yield Peer(f"127.0.0.1:{port}", ClientCredentials.load(place / "agent"))
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
