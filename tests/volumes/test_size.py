"""The size rule and the partition table."""

import struct
from pathlib import Path

import pytest

from smallstack.volumes.errors import RootSizeError, RootTooLargeError
from smallstack.volumes.partition import partition_table
from smallstack.volumes.size import estimated_size, root_size
from tests.volumes.disks import run

MIB = 1 << 20


@pytest.mark.parametrize(
    ("usage", "free", "power", "least", "size"),
    [
        (0, 1, 0, 0, 16 * MIB),
        (8 * MIB, 6 * MIB, 0, 0, 16 * MIB),  # 9 + 6 + the gap: exactly 16 MiB
        (8 * MIB, 6 * MIB + 1, 0, 0, 32 * MIB),
        (8 * MIB, 6 * MIB, 26, 0, 64 * MIB),
        (8 * MIB, 0, 24, 9 * MIB + 1, 16 * MIB),
        (8 * MIB, 0, 24, 40 * MIB, 48 * MIB),
        (100 * MIB, 1 << 30, 30, 0, 2 << 30),
    ],
)
def test_rule(usage: int, free: int, power: int, least: int, size: int) -> None:
    assert root_size(usage, free, power, least) == size


def test_no_free_space_is_refused_with_upstreams_words() -> None:
    with pytest.raises(RootTooLargeError, match=r"^root file-system too large$"):
        root_size(8 * MIB, 0, 24)
    with pytest.raises(RootTooLargeError):
        root_size(8 * MIB, 0, 24, 9 * MIB)


def test_estimate_leaves_the_gap_out() -> None:
    assert estimated_size(8 * MIB, 7 * MIB, 0) == 16 * MIB
    assert estimated_size(8 * MIB, 7 * MIB + 1, 0) == 32 * MIB


def test_table_as_partx_reads_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(partition_table(64 * MIB, b"\x01\x02\x03\x04"))
    with disk.open("r+b") as file:
        file.truncate(64 * MIB)
    columns = "NR,START,SECTORS,TYPE,FLAGS,UUID,SCHEME"
    shown = run("partx", "--show", "--noheadings", "--output", columns, disk)
    assert shown.split() == ["1", "2048", str(63 * 2048), "0x83", "0x80", "04030201-01", "dos"]


@pytest.mark.parametrize("size", [0, MIB, (2 << 40) + MIB + 512, 16 << 40])
def test_sizes_a_table_cannot_say(size: int) -> None:
    with pytest.raises(RootSizeError):
        partition_table(size, bytes(4))


def test_largest() -> None:
    table = partition_table((2 << 40) + MIB - 512, bytes(4))
    assert struct.unpack_from("<I", table, 446 + 12)[0] == 2**32 - 1
