"""Opening chains, and images that are not what they should be."""

import os
import random
import struct
import time
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.chain import MAX_DEPTH, Disk, Files
from smallstack.volumes.qcow2.errors import (
    BackingError,
    DiskDamagedError,
    DiskError,
    DiskTooLargeError,
    DiskUnreadableError,
    DiskUnsupportedError,
    SnapshotNotFoundError,
)
from smallstack.volumes.qcow2.extents import differing
from tests.volumes.qcow2.generate import Cluster, Image, random_image, write_image


def make(path: Path, backing: tuple[str, str] | None = None) -> Path:
    image = Image(12, 1 << 20, backing=backing)
    image.states = [{0: Cluster(bytes([7]) * 4096), 5: Cluster(None, zero=True)}]
    write_image(image, path, random.Random(1))
    return path


def opened(path: Path, *, backing: bool = True) -> Disk:
    with Files() as files:
        return files.open(path, backing=backing)


def test_a_chain_is_followed_through_directories(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    make(tmp_path / "below" / "base")
    make(tmp_path / "below" / "middle", ("base", "qcow2"))
    make(tmp_path / "top", ("below/middle", "qcow2"))
    names = [layer.path.name for layer in opened(tmp_path / "top").layers]
    assert names == ["top", "middle", "base"]


def test_loops_and_depth(tmp_path: Path) -> None:
    make(tmp_path / "itself", ("itself", "qcow2"))
    make(tmp_path / "a", ("b", "qcow2"))
    make(tmp_path / "b", ("c", "qcow2"))
    (tmp_path / "c").symlink_to("a")
    for name in ("itself", "a"):
        with pytest.raises(BackingError, match="leads back"):
            opened(tmp_path / name)
    make(tmp_path / "0")
    for i in range(MAX_DEPTH):
        make(tmp_path / str(i + 1), (str(i), "qcow2"))
    assert len(opened(tmp_path / str(MAX_DEPTH - 1)).layers) == MAX_DEPTH
    with pytest.raises(BackingError, match="too deep"):
        opened(tmp_path / str(MAX_DEPTH))


def test_backing_files_that_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    top = tmp_path / "top"
    for backing, message in (
        (("gone", "raw"), "cannot be read: No such file"),
        (("json:{}", "raw"), "not the name of a file"),
        (("nbd://host/x", "raw"), "not the name of a file"),
        (("base", "vmdk"), "format 'vmdk'"),
    ):
        make(top, backing)
        with pytest.raises(DiskError, match=message):
            opened(top)
    os.mkfifo(tmp_path / "pipe")
    make(top, ("pipe", "raw"))
    with pytest.raises(BackingError, match="neither a file nor a block device"):
        opened(top)
    with pytest.raises(DiskUnreadableError, match="neither a file"):
        opened(tmp_path)
    make(top, ("base", "raw"))
    with pytest.raises(BackingError, match="is not allowed here"):
        opened(top, backing=False)
    assert opened(top).layers[1].size == base.stat().st_size


def test_a_guests_header_is_not_followed(tmp_path: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header into it stays raw."""
    make(tmp_path / "disk", ("/etc/hostname", "raw"))
    make(tmp_path / "top", ("disk", "raw"))
    assert opened(tmp_path / "top").layers[1].image is None
    with Files() as files:
        assert files.open(tmp_path / "disk", disk_format="raw").image is None
    raw = bytearray((tmp_path / "top").read_bytes())
    at = raw.index(struct.pack(">I", 0xE2792ACA))
    raw[at : at + 4] = b"skip"  # nothing says what it is
    (tmp_path / "top").write_bytes(raw)
    with pytest.raises(BackingError, match="may be raw or qcow2"):
        opened(tmp_path / "top")


def test_snapshots_are_named_by_id_or_name(tmp_path: Path) -> None:
    rng = random.Random(4)
    image = random_image(rng)
    while len(image.states) < 3:
        image = random_image(rng)
    write_image(image, tmp_path / "disk", rng)
    with Files() as files:
        by_id = files.open(tmp_path / "disk", snapshot="2")
        by_name = files.open(tmp_path / "disk", snapshot="name1")
        assert len(differing(by_id, by_name)) == 0
        with pytest.raises(SnapshotNotFoundError, match="it has name0, name1"):
            files.open(tmp_path / "disk", snapshot="name9")


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"QFI\xfa", None),  # then it is raw
        (4, struct.pack(">I", 1), DiskUnsupportedError),
        (4, struct.pack(">I", 4), DiskUnsupportedError),
        (20, struct.pack(">I", 8), DiskUnsupportedError),
        (20, struct.pack(">I", 22), DiskUnsupportedError),
        (24, struct.pack(">Q", 1 << 63), DiskTooLargeError),
        (24, struct.pack(">Q", 1 << 40), DiskDamagedError),
        (32, struct.pack(">I", 2), DiskUnsupportedError),
        (36, struct.pack(">I", (4 << 20) + 1), DiskTooLargeError),
        (36, struct.pack(">I", 0), DiskDamagedError),
        (40, struct.pack(">Q", 12345), DiskDamagedError),
        (40, struct.pack(">Q", 1 << 40), DiskDamagedError),
        (56, struct.pack(">I", 1 << 20), DiskTooLargeError),
        (60, struct.pack(">I", 65537), DiskTooLargeError),
        (60, struct.pack(">I", 5), DiskDamagedError),
        (72, struct.pack(">Q", 4), DiskUnsupportedError),
        (72, struct.pack(">Q", 1 << 40), DiskUnsupportedError),
        (72, struct.pack(">Q", 8), DiskDamagedError),
        (72, struct.pack(">Q", 16), DiskDamagedError),
        (96, struct.pack(">I", 7), DiskDamagedError),
        (100, struct.pack(">I", 100), DiskDamagedError),
        (100, struct.pack(">I", 1 << 30), DiskDamagedError),
        (108, struct.pack(">I", 1 << 30), DiskDamagedError),
    ],
)
def test_headers_that_lie(
    tmp_path: Path, at: int, value: bytes, error: type[DiskError] | None
) -> None:
    path = tmp_path / "disk"
    make(path, ("below", "raw"))
    (tmp_path / "below").write_bytes(bytes(512))
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    if error is None:
        assert opened(path).image is None
        return
    with pytest.raises(error):
        opened(path)


def test_every_cut_is_refused_or_read(tmp_path: Path) -> None:
    """A file cut off anywhere: an error, or zeros for data that is gone."""
    path = make(tmp_path / "disk")
    whole = path.read_bytes()
    for length in [*range(0, 200, 3), *range(0, len(whole), 1024)]:
        path.write_bytes(whole[:length])
        try:
            with Files() as files:
                disk = files.open(path)
                disk.view.read(0, min(disk.size, 1 << 20))
                if disk.image is not None:
                    disk.image.check()
        except DiskError as error:
            assert "\n" not in str(error)


def test_a_table_that_stands_for_the_whole_disk_is_refused(tmp_path: Path) -> None:
    """Else 2 MiB of file could ask for the walk through an exabyte."""
    path = tmp_path / "disk"
    bits, entries = 21, 1 << 18
    header = bytearray(1 << bits)
    struct.pack_into(
        ">IIQIIQIIQQIIQQQQII",
        header, 0, 0x514649FB, 3, 0, 0, bits, entries << 39, 0, entries, 1 << bits,
        0, 0, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    l1 = struct.pack(">Q", 2 << bits) * entries
    path.write_bytes(bytes(header) + l1.ljust(1 << bits, b"\0") + b"\1" * (1 << bits))
    started = time.process_time()
    with pytest.raises(DiskDamagedError, match="used for two places"):
        opened(path)
    assert time.process_time() - started < 5


def test_overlapping_metadata_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "disk")
    with Files() as files:
        disk = files.open(path)
        assert disk.image is not None
        assert disk.image.check()["corruptions"] == 0
        host = disk.view.map()[0][4]
    raw = bytearray(path.read_bytes())
    l1 = struct.unpack_from(">Q", raw, 40)[0]
    table = struct.unpack_from(">Q", raw, l1)[0] & 0x00FFFFFFFFFFFE00
    assert struct.unpack_from(">Q", raw, table)[0] & 0x00FFFFFFFFFFFE00 == host
    counts = struct.unpack_from(">Q", raw, 48)[0]
    for victim in (l1, table, counts):
        struct.pack_into(">Q", raw, table, victim | 1 << 63)
        path.write_bytes(raw)
        with Files() as files:
            image = files.open_image(path)
            assert image is not None
            assert image.check()["corruptions"] > 0, victim
