"""Partition tables and the EFI system partition, as the tools of others read them."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smallstack.proto.enums import FirmwareType
from smallstack.volumes.errors import RootSizeError
from smallstack.volumes.fat import FatSpaceError, fat32
from smallstack.volumes.partition import (
    EFI_SIZE,
    MBR_LIMIT,
    MIB,
    PARTITION_OFFSET,
    Extent,
    Scheme,
    divide,
    root_of,
    scheme_of,
)
from tests.volumes.disks import run

SEED = bytes(range(40, 60))
TIB = 1 << 40
DIVIDED = [
    (64 * MIB, FirmwareType.DEFAULT, Scheme.MBR),
    (MBR_LIMIT, FirmwareType.BIOS, Scheme.MBR),
    (MBR_LIMIT + 16 * MIB, FirmwareType.BIOS, Scheme.GPT),
    (15 * TIB, FirmwareType.BIOS, Scheme.GPT),
    (256 * MIB, FirmwareType.UEFI, Scheme.EFI),
    (3 * TIB, FirmwareType.UEFI, Scheme.EFI),
]


def write(path: Path, size: int, parts: list[tuple[int, bytes]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return path


@pytest.mark.parametrize(("size", "firmware", "scheme"), DIVIDED)
def test_tables_as_others_read_them(
    tmp_path: Path, size: int, firmware: FirmwareType, scheme: Scheme
) -> None:
    division = divide(size, firmware, SEED)
    assert division.scheme is scheme
    disk = write(tmp_path / "disk", size, list(division.writes))
    assert "No errors detected" in run("sfdisk", "--verify", disk)
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    assert table["label"] == ("dos" if scheme is Scheme.MBR else "gpt")
    found = [Extent(p["start"] * 512, p["size"] * 512) for p in table["partitions"]]
    types = [p["type"] for p in table["partitions"]]
    linux, efi = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    bios_boot = "21686148-6449-6E6F-744E-656564454649"
    expected = {
        Scheme.MBR: ([division.root], ["83"]),
        Scheme.GPT: ([division.root, division.loader], [linux, bios_boot]),
        Scheme.EFI: ([division.root, division.loader], [linux, efi]),
    }
    assert (found, types) == expected[scheme]
    if scheme is Scheme.MBR:
        assert table["partitions"][0]["bootable"]
        assert division.root.offset + division.root.size == size
    else:
        said = run("sgdisk", "-v", disk)
        assert "No problems found" in said
        assert "Caution" not in said
        ids = [table["id"], *(p["uuid"] for p in table["partitions"])]
        assert len(set(ids)) == 3
    fd = os.open(disk, os.O_RDONLY)
    try:
        assert root_of(fd, size) == division.root
    finally:
        os.close(fd)


@pytest.mark.parametrize("firmware", [FirmwareType.BIOS, FirmwareType.UEFI])
@given(size=st.integers(1, 16 << 15).map(lambda n: n * 512 * 2048 + n % 2048 * 512))
@example(size=MBR_LIMIT)
def test_nothing_overlaps(firmware: FirmwareType, size: int) -> None:
    try:
        division = divide(size, firmware, SEED)
    except RootSizeError:
        assert size < PARTITION_OFFSET + EFI_SIZE + 2 * MIB
        return
    parts = [(e.offset, e.offset + e.size) for e in (division.root, division.loader)]
    parts += [(offset, offset + len(data)) for offset, data in division.writes]
    parts.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(parts))
    assert parts[-1][1] <= size
    assert division.root.offset % MIB == 0
    assert division.scheme is scheme_of(size, firmware)


@pytest.mark.parametrize("size", [0, MIB, 129 * MIB, 130 * MIB - 512])
def test_disks_without_room_for_a_root(size: int) -> None:
    with pytest.raises(RootSizeError) as caught:
        divide(size, FirmwareType.UEFI, SEED)
    least = 130 * MIB + 33 * 512
    assert str(caught.value).endswith(f": it takes {least} at least, in whole sectors of 512")
    assert divide(least, FirmwareType.UEFI, SEED).root.size == MIB


@given(head=st.binary(min_size=0, max_size=64), size=st.integers(2 * MIB, 16 * TIB))
@example(head=b"\xff" * 64, size=64 * MIB)
def test_a_damaged_table_names_no_root_beyond_its_disk(head: bytes, size: int) -> None:
    table = bytearray(1024 + 128)
    table[446 + 4] = 0xEE
    table[1024 : 1024 + len(head)] = head
    fd = os.memfd_create("table")
    try:
        os.write(fd, table)
        root = root_of(fd, size)
    finally:
        os.close(fd)
    assert PARTITION_OFFSET <= root.offset < root.offset + root.size <= size


def test_fat_as_others_read_it(tmp_path: Path) -> None:
    files = {
        "EFI/BOOT/BOOTX64.EFI": os.urandom(900_001),
        "EFI/BOOT/EMPTY": b"",
        "EFI/DEBIAN/GRUB.CFG": b"x" * 1024,
        **{f"EFI/MANY/F{number:07}.TXT": b"%d" % number for number in range(100)},
    }
    parts = fat32(EFI_SIZE, files, hidden=2048, volume_id=b"\1\2\3\4")
    partition = write(tmp_path / "esp", EFI_SIZE, parts)
    assert " 108 files" in run("fsck.vfat", "-n", "-v", partition)
    for path, data in files.items():
        copied = tmp_path / "copied"
        copied.unlink(missing_ok=True)
        run("mcopy", "-n", "-i", partition, f"::{path}", copied)
        assert copied.read_bytes() == data, path
    said = run("mdir", "-i", partition, "-b", "-/", "::")
    assert sorted(line[3:] for line in said.splitlines() if not line.endswith("/")) == sorted(files)
    assert "Serial Number is 0403-0201" in run("mdir", "-i", partition, "::")


@pytest.mark.parametrize(("size", "length"), [(32 * MIB, 0), (EFI_SIZE, EFI_SIZE)])
def test_no_room(size: int, length: int) -> None:
    with pytest.raises(FatSpaceError):
        fat32(size, {"F": bytes(length)}, hidden=0, volume_id=bytes(4))
