"""Disk images of every format, made by qemu-img."""

import random
from pathlib import Path

from tests.volumes.disks import run

MIB = 1 << 20
SIZE = 6 * MIB


def make_raw(path: Path, seed: int = 1, size: int = SIZE) -> bytes:
    """A disk with data, zeros and holes."""
    rng = random.Random(seed)
    data = bytearray(size)
    for at in range(0, size - 100_000, MIB):
        data[at + 5000 : at + 90_000] = rng.randbytes(85_000)
    path.write_bytes(data)
    return bytes(data)


def convert(raw: Path, path: Path, format_: str, *options: str) -> Path:
    """``raw`` in another format."""
    run("qemu-img", "convert", "-f", "raw", "-O", format_, *options, raw, path)
    return path


def every_format(directory: Path) -> dict[str, Path]:
    """``raw`` and the same disk in other formats, by name."""
    raw = directory / "raw"
    make_raw(raw)
    found = {"raw": raw}
    for name, format_, *options in (
        ("qcow2", "qcow2"),
        ("qcow2-packed", "qcow2", "-c"),
        ("qcow2-old", "qcow2", "-o", "compat=0.10"),
        ("vmdk", "vmdk"),
        ("vmdk-stream", "vmdk", "-o", "subformat=streamOptimized"),
        ("vdi", "vdi"),
        ("vdi-fixed", "vdi", "-o", "static=on"),
    ):
        found[name] = convert(raw, directory / name, format_, *options)
    return found
