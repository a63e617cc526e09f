"""``./dev bench boot``: a Debian root with its boot loader, ours beside mount, copy, grub-install.

Two ways to the same disk, in turns, everything in the page cache, for a BIOS and for UEFI:

- *ours*: the ext4 writer from packed tree and object files, GRUB's images written behind it, and
  a VM's layer with its grub.cfg over that; the images themselves were made before, as they are
  once on every host;
- *loop*: what others do: a loop device over a file that is divided already, ``mke2fs``, mount,
  ``cp -a`` of the unpacked directory, ``grub-install``, a grub.cfg, umount.

*present* is ours when the brick is there already: finding it, and the layer. Neither side syncs
its file. Needs root, for the mounts, which are in a namespace of their own.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import picture
from bench.debian import debian_root
from bench.results import BenchError, finish, median, spread, warm
from smallstack.control.namespace import private_mounts_command
from smallstack.images.build import StoreSink, from_directory
from smallstack.objects.store import ObjectStore
from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem
from smallstack.settings import cache_directory
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.bootloader import BootLoader, BootLoaders
from smallstack.volumes.brick import BrickStore
from smallstack.volumes.grub_config import GRUB_CONFIG, grub_config
from smallstack.volumes.layer import create_layer
from smallstack.volumes.partition import divide, scheme_of
from smallstack.volumes.size import root_size

FREE_BYTES: Final = 256 << 20
FIRMWARES: Final = {"bios": FirmwareType.BIOS, "uefi": FirmwareType.UEFI}
OURS: Final = ("unpack", "install boot loader")
LOOP: Final = ("mkfs", "copy", "grub-install", "umount")
_CONFIG: Final = grub_config(b"/boot/vmlinuz", b"/boot/initrd.img", "root=LABEL=rootfs ro")
_LOOP: Final = """
disk=$1 root=$2 at=$3 firmware=$4 url=$5 sum=$6
stamp() { echo "$1 $(date +%s%N)"; }
stamp begin
if [ -n "$url" ]; then
    curl -sSf -o "$disk.tar" "$url"
    stamp fetch
    echo "$sum  $disk.tar" | sha512sum --check --quiet
    stamp sha512sum
fi
device=$(losetup --find --show "$disk")
name=${device#/dev/}
trap 'umount -R "$at" || :; partx --delete "$device"; losetup --detach "$device"' EXIT
partx --add "$device"
for part in "${name}p1" "${name}p2"; do
    if [ -e "/sys/class/block/$part" ] && [ ! -e "/dev/$part" ]; then
        IFS=: read -r major minor <"/sys/class/block/$part/dev"
        mknod "/dev/$part" b "$major" "$minor"
    fi
done
mke2fs -q -F -t ext4 -i 8192 -L rootfs -E nodiscard "${device}p1"
if [ "$firmware" = uefi ]; then mkfs.vfat -F 32 -n EFI "${device}p2" >/dev/null; fi
mount "${device}p1" "$at"
stamp mkfs
if [ -n "$url" ]; then
    tar --extract --file "$disk.tar" --directory "$at" --numeric-owner --xattrs --xattrs-include='*'
else
    cp -a "$root/." "$at/"
fi
stamp copy
if [ "$firmware" = uefi ]; then
    mkdir -p "$at/mnt/efi"
    mount "${device}p2" "$at/mnt/efi"
    set -- --target=x86_64-efi --efi-directory="$at/mnt/efi" --removable
else
    set -- --target=i386-pc
fi
grub-install "$@" --boot-directory="$at/boot" "$device" 2>&1
cp "$disk.cfg" "$at/boot/grub/grub.cfg"
stamp grub-install
if [ "$firmware" = uefi ]; then umount "$at/mnt/efi"; fi
umount "$at"
trap - EXIT
partx --delete "$device"
losetup --detach "$device"
stamp umount
"""


class _Objects:
    """The object store as the writer sees the cache."""

    def __init__(self, store: ObjectStore, fs: FileSystem) -> None:
        self.directory = store.directory
        self._digests = {hash_: store.verify(hash_).blake3 for hash_ in fs.objects()}

    def facts(self, hash_: bytes) -> tuple[bytes, int, int]:
        """What the object's bytes must hash to; each has a file of its own."""
        return self._digests[hash_], 0, 0

    async def drop(self, hashes: Iterable[bytes]) -> None:
        """Nothing is fetched here."""


@dataclass
class Disk:
    """What one firmware's disks are made from, and how long each way took."""

    name: str
    firmware: FirmwareType
    size: int
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        """Keep one sample."""
        self.samples.setdefault(name, []).append(seconds)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure ``args.n`` turns; prints a table and the headline, which is also returned.

    ``args.json`` (a Path or None) gets all samples, ``args.picture`` a picture.
    """
    root = debian_root()
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="bench-boot-") as name:
        return _measure(root, Path(name), args.n, args.json, args.picture)


def _measure(
    root: Path, place: Path, turns: int, json_file: Path | None, picture_file: Path
) -> dict[str, Any]:
    print(f"scanning {root}", file=sys.stderr, flush=True)
    store = ObjectStore(place / "objects", with_blake3=True)
    fs = from_directory(root, StoreSink(store))
    objects = _Objects(store, fs)
    loaders = BootLoaders(place / "loaders")
    has_vfat = "vfat" in Path("/proc/filesystems").read_text().split()
    if not has_vfat:
        print("this kernel mounts no vfat: grub-install for UEFI cannot be measured here")
    disks, kept, made = [], [], []
    for name, firmware in FIRMWARES.items():
        size = root_size(fs.usage_estimate(), FREE_BYTES, 24, firmware=firmware)
        started = time.perf_counter()
        kept.append(loaders.get(scheme_of(size, firmware)))
        made.append(time.perf_counter() - started)
        disks.append(Disk(name, firmware, size))
    for turn in range(-1, turns):  # the first turn fills the page cache
        for disk, loader in zip(disks, kept, strict=True):
            if turn < 0:
                disk.samples.clear()
            for way in ("ours", "loop") if turn % 2 else ("loop", "ours"):
                subprocess.run(["sync", "-f", place], check=True)
                warm(fs.total_data_bytes)
                if way == "ours":
                    asyncio.run(_ours(disk, loader, fs, objects, place))
                elif disk.name == "bios" or has_vfat:
                    loop_disk(disk, root, place)
            if turn < 0:
                disk.samples.clear()
            else:
                latest = ((n, s[-1] * 1000) for n, s in disk.samples.items())
                print(f"{disk.name}  " + "  ".join(f"{n} {ms:.1f}" for n, ms in latest), flush=True)
    headline: dict[str, Any] = {
        "n": turns,
        "inodes": len(fs),
        "data_bytes": fs.total_data_bytes,
        "grub_mkimage_ms": median([seconds * 1000 for seconds in made], 1),
    }
    print(f"{len(fs)} inodes, {fs.total_data_bytes >> 20} MiB of content")
    for disk in disks:
        for name, values in disk.samples.items():
            print(f"  {disk.name}  {name:20} {spread(values)}")
        mid = {name: median(values, 6) for name, values in disk.samples.items()}
        headline[disk.name] = {
            "ours_s": round(mid["ours"], 4),
            "boot_loader_ms": round(mid["install boot loader"] * 1000, 2),
            "present_ms": round(mid["present"] * 1000, 2),
        }
        if "loop" in mid:
            headline[disk.name] |= {
                "loop_s": round(mid["loop"], 4),
                "grub_install_ms": round(mid["loop: grub-install"] * 1000, 1),
                "ratio": round(mid["loop"] / mid["ours"], 2),
            }
    picture.boots({name: bar for disk in disks for name, bar in _bars(disk)}, picture_file)
    print(f"picture: {picture_file}")
    samples = {f"{d.name}: {name}": values for d in disks for name, values in d.samples.items()}
    finish("boot", headline, samples, json_file)
    return headline


def _bars(disk: Disk) -> Iterator[tuple[str, dict[str, float]]]:
    """Medians of the phases of each way that was measured."""
    for way, names in (("ours", OURS), ("loop", LOOP)):
        if way in disk.samples:
            prefix = "" if way == "ours" else "loop: "
            yield (
                f"{disk.name}: {way}",
                {name: median(disk.samples[prefix + name], 6) for name in names},
            )


async def _ours(
    disk: Disk, loader: BootLoader, fs: FileSystem, objects: _Objects, place: Path
) -> None:
    bricks = BrickStore(place / "bricks", objects)
    layer, timeline = place / "layer", Timeline()
    started = time.perf_counter()
    brick = await bricks.get(
        fs, b"debian", disk.size, disk.firmware, loader=loader, timeline=timeline
    )
    create_layer(brick, layer, label="rootfs", files={GRUB_CONFIG: _CONFIG})
    disk.add("ours", time.perf_counter() - started)
    for phase in timeline.phases:
        disk.add(phase.name, phase.duration_ns / 1e9)
    await bricks.close()
    layer.unlink()
    started = time.perf_counter()
    brick = await bricks.get(fs, b"debian", disk.size, disk.firmware, loader=loader)
    create_layer(brick, layer, label="rootfs", files={GRUB_CONFIG: _CONFIG})
    disk.add("present", time.perf_counter() - started)
    layer.unlink()
    await bricks.remove(brick)


class Archive(NamedTuple):
    """A tar archive of the root that is fetched first: where from, and its SHA-512 in hex."""

    url: str
    sha512: str


def loop_disk(disk: Disk, root: Path, place: Path, archive: Archive | None = None) -> None:
    """Make the disk as others do, of ``root``, or of what is fetched; samples ``loop`` or ``cold``.

    Raises BenchError.
    """
    path, at = place / "disk", place / "mounted"
    name = "loop" if archive is None else "loop cold"
    with path.open("wb") as file:
        file.truncate(disk.size)
        for offset, data in divide(disk.size, disk.firmware, bytes(20)).writes:
            file.seek(offset)
            file.write(data)
    path.with_name("disk.cfg").write_bytes(_CONFIG)
    at.mkdir(exist_ok=True)
    command = ["sh", "-euc", _LOOP, "loop", str(path), str(root), str(at), disk.name]
    command += archive or ("", "")
    done = subprocess.run(
        private_mounts_command(command),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise BenchError(detail=f"mount, copy, grub-install: {done.stdout}{done.stderr}")
    lines = [line.split() for line in done.stdout.splitlines()]
    stamps = [
        (line[0], int(line[1]) / 1e9) for line in lines if len(line) == 2 and line[1].isdigit()
    ]
    disk.add(name, stamps[-1][1] - stamps[0][1])
    for (_, before), (step, after) in pairwise(stamps):
        disk.add(f"{name}: {step}", after - before)
    path.unlink()
    path.with_name("disk.tar").unlink(missing_ok=True)
