"""Images as they come, in any pieces: written, hashed, unpacked, refused."""

import bz2
import gzip
import hashlib
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.volumes.errors import DiskImageError
from smallstack.volumes.foreign.formats import DiskFormat
from smallstack.volumes.foreign.intake import Intake
from smallstack.volumes.foreign.sparse import SparseFile
from tests.volumes.foreign.images import MIB, convert, make_raw

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
LIMIT = 64 * MIB


def take(
    path: Path,
    data: bytes,
    *,
    wanted: DiskFormat | None = None,
    step: int = 100_001,
    limit: int = LIMIT,
    digests: dict[str, str] | None = None,
) -> Intake:
    """Feed it all, in pieces; the file is ``path``."""
    path.unlink(missing_ok=True)
    intake = Intake(path, "x", wanted=wanted, limit=limit, digests=digests)
    try:
        for at in range(0, len(data), step):
            written = intake.feed(data[at : at + step])
            while not written:
                intake.allowed = intake.waiting
                written = intake.pump()
        intake.allowed = max(intake.allowed, 64)
        intake.finish()
    finally:
        intake.close()
    return intake


def refusal(path: Path, data: bytes, **options: object) -> str:
    with pytest.raises(DiskImageError) as caught:
        take(path, data, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)), min_size=1, max_size=40),
    st.integers(1, 300_000),
)
def test_holes_are_zeros(tmp_path: Path, parts: list[tuple[int, int]], step: int) -> None:
    data = b"".join(b"x" * n + bytes(m) for n, m in parts)
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    with SparseFile(path) as file:
        for at in range(0, len(data), step):
            file.write(data[at : at + step])
        file.finish()
    assert path.read_bytes() == data


def test_a_raw_disk_is_sparse_and_whole_sectors(tmp_path: Path) -> None:
    data = make_raw(tmp_path / "raw") + b"end"
    intake = take(tmp_path / "out", data)
    assert (intake.format, intake.form) == (DiskFormat.RAW, "")
    assert (tmp_path / "out").read_bytes() == data.ljust(len(data) + 509, b"\0")
    assert (tmp_path / "out").stat().st_blocks * 512 < 700_000
    assert intake.digests == {"blake3": blake3(data).hexdigest()}


@pytest.mark.parametrize("form", list(COMPRESSORS))
def test_compressed(tmp_path: Path, form: str) -> None:
    data = make_raw(tmp_path / "raw")
    packed = COMPRESSORS[form](data[: 2 * MIB]) + COMPRESSORS[form](data[2 * MIB :])
    for step in (len(packed), 7777):
        intake = take(tmp_path / "out", packed, step=step)
        assert intake.form == form
        assert (tmp_path / "out").read_bytes() == data
    assert intake.digests["blake3"] == blake3(packed).hexdigest()
    # Every byte is the disk's for those who say so.
    assert take(tmp_path / "out", packed, wanted=DiskFormat.RAW).form == ""
    assert (tmp_path / "out").read_bytes().rstrip(b"\0") == packed.rstrip(b"\0")
    told = refusal(tmp_path / "out", packed[: len(packed) * 2 // 3])
    assert told == f"image x cannot be a VM's disk: its {form} data ends too early"
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x10
    assert f"its {form} data is damaged" in refusal(tmp_path / "out", bytes(flipped))
    assert f"its {form} data" in refusal(tmp_path / "out", packed + b"rubbish")


@pytest.mark.parametrize("form", list(COMPRESSORS))
def test_bombs(tmp_path: Path, form: str) -> None:
    """What expands without end stops at the limit, and was written in small pieces."""
    packed = COMPRESSORS[form](bytes(40 * MIB))
    told = refusal(tmp_path / "out", packed, step=1 << 18, limit=4 * MIB)
    assert f"it has over {4 * MIB} bytes, the most that is taken" in told
    assert (tmp_path / "out").stat().st_blocks == 0


def test_what_is_allowed_bounds_what_is_written(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "out", "x", wanted=None, limit=LIMIT)
    intake.allowed = 3 * MIB
    assert not intake.feed(gzip.compress(os.urandom(MIB) + bytes(20 * MIB)))
    assert intake.size <= 3 * MIB < intake.waiting
    intake.allowed = LIMIT
    assert intake.pump()
    assert intake.finish() == 21 * MIB
    intake.close()


def test_limits_and_digests(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = b"\1" * 5000
    assert "it is empty" in refusal(out, b"")
    assert "it is empty" in refusal(out, gzip.compress(b""))
    assert "over 4999 bytes" in refusal(out, data, limit=4999)
    right = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "sha512": hashlib.sha512(data).hexdigest().upper(),
        "blake3": blake3(data).hexdigest(),
    }
    assert take(out, data, digests=right).digests["sha256"] == right["sha256"]
    for kind, value in right.items():
        told = refusal(out, data + b"\0", digests={kind: value})
        assert f"its {kind} is " in told
        assert f"not {value.lower()}" in told


def test_other_formats(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw)
    for name in ("qcow2", "vmdk", "vdi"):
        data = convert(raw, tmp_path / name, name).read_bytes()
        assert take(tmp_path / "out", gzip.compress(data, 1)).format.value == name
        assert (tmp_path / "out").read_bytes().rstrip(b"\0") == data.rstrip(b"\0")
        assert take(tmp_path / "out", data, wanted=DiskFormat.RAW).format is DiskFormat.RAW
        other = DiskFormat.VDI if name != "vdi" else DiskFormat.QCOW2
        assert "it is no" in refusal(tmp_path / "out", data, wanted=other)
    # A disk that is too large, by its header.
    vdi = bytearray((tmp_path / "vdi").read_bytes())
    assert "it has over 1048576 bytes" in refusal(
        tmp_path / "out", gzip.compress(bytes(vdi)), limit=MIB
    )


def test_a_refusal_comes_as_soon_as_the_head_is_there(tmp_path: Path) -> None:
    """Not after a hundred gigabytes."""
    intake = Intake(tmp_path / "out", "x", wanted=None, limit=LIMIT)
    intake.allowed = LIMIT
    with pytest.raises(DiskImageError, match="it is only the descriptor"):
        for _ in range(8):
            intake.feed(b"# Disk DescriptorFile\n".ljust(MIB // 2, b"#"))
    intake.close()
