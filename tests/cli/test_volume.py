"""``smallstack volume``: every command once, and its errors in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.volumes.qcow2.test_qemu import qemu_img


def volume(
    *arguments: object, feed: bytes | None = None, code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "smallstack.cli.smallstack", "volume", *map(str, arguments)],
        input=feed,
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code == 1:
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert b"Traceback" not in done.stderr
    return done


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "16M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 4M", base], check=True, capture_output=True)
    qemu_img("snapshot", "-c", "then", base)
    subprocess.run(["qemu-io", "-c", "write -P 2 1M 1M", base], check=True, capture_output=True)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    subprocess.run(["qemu-io", "-c", "write -P 3 8M 1M", top], check=True, capture_output=True)
    return base, top


def compare(left: Path, right: Path) -> None:
    subprocess.run(["qemu-img", "compare", left, right], check=True, capture_output=True)


def test_a_stream_by_file_and_by_pipe(disks: tuple[Path, Path], tmp_path: Path) -> None:
    base, top = disks
    raw, then = tmp_path / "raw", tmp_path / "then"
    qemu_img("convert", "-O", "raw", base, raw)
    qemu_img("convert", "-l", "then", "-O", "qcow2", base, then)
    volume("diff", base, top, "-o", tmp_path / "stream")
    assert b"16 blocks, 1048576 bytes" in volume("apply", tmp_path / "stream", raw).stderr
    compare(raw, top)
    sent = volume("diff", base, base, "--old-snapshot", "then").stdout
    volume("apply", "-", then, feed=sent)
    compare(then, base)
    assert volume("apply", "--progress", raw).stdout == b""


def test_the_rest_of_a_stream(disks: tuple[Path, Path], tmp_path: Path) -> None:
    base, top = disks
    raw, note = tmp_path / "raw", tmp_path / "note"
    qemu_img("convert", "-O", "raw", base, raw)
    sent = volume("diff", base, top).stdout
    assert b"go on from block" in volume("apply", "-", raw, feed=sent[:-60], code=1).stderr
    note.write_bytes(volume("apply", "--progress", raw).stdout)
    volume("apply", "-", raw, feed=volume("diff", base, top, "--resume", note).stdout)
    compare(raw, top)
    error = volume("diff", base, top, "--no-old-digests", "--resume", note, code=1).stderr
    assert b"about another stream" in error


def test_extents_and_map_and_check(disks: tuple[Path, Path]) -> None:
    base, top = disks
    found = volume("diff", base, top, "--extents").stdout.splitlines()
    assert [json.loads(line) for line in found] == [
        {"start": 8 << 20, "length": 1 << 20, "zero": False}
    ]
    rows = json.loads(volume("map", top, "--format", "json").stdout)
    assert [row["kind"] for row in rows] == ["data", "data", "data", "hole", "data", "hole"]
    assert json.loads(volume("check", base, "--format", "json").stdout)["leaks"] == 0


def test_since_a_bitmap(disks: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = disks
    raw = tmp_path / "raw"
    qemu_img("convert", "-O", "raw", base, raw)
    qemu_img("bitmap", "--add", base, "backup")
    subprocess.run(["qemu-io", "-c", "write -P 9 5M 64k", base], check=True, capture_output=True)
    volume("apply", "-", raw, feed=volume("diff", "--since", "backup", base).stdout)
    compare(raw, base)


def test_flatten_commit_compact(disks: tuple[Path, Path], tmp_path: Path) -> None:
    base, top = disks
    out = tmp_path / "out"
    for options in (("--output-format", "raw"), ("--compress", "zstd", "--cluster-size", "4K")):
        volume("flatten", top, out, *options)
        compare(out, top)
    volume("flatten", base, out, "--snapshot", "then")
    qemu_img("snapshot", "-d", "then", base)
    volume("commit", top)
    compare(base, top)
    volume("compact", base)
    compare(base, top)
    volume("check", base)


def test_errors_are_one_line(disks: tuple[Path, Path], tmp_path: Path) -> None:
    base, top = disks
    gone = tmp_path / "gone"
    for arguments in (
        ("diff", gone, top, "-o", tmp_path / "out"),
        ("diff", base, top, "--new-snapshot", "none", "-o", tmp_path / "out"),
        ("flatten", gone, tmp_path / "out"),
        ("flatten", top, tmp_path / "out", "--no-backing"),
        ("flatten", top, tmp_path / "no" / "directory"),
        ("commit", base),
        ("compact", gone),
        ("check", __file__),
        ("apply", __file__, base),
        ("apply", gone, base),
    ):
        volume(*arguments, code=1)
    assert not (tmp_path / "out").exists()
    assert str(gone).encode() in volume("apply", gone, base, code=1).stderr
    assert b"what `smallstack volume diff` writes" in volume("apply", base, top, code=1).stderr
    volume("diff", base, code=2)
    raw = bytearray(base.read_bytes())
    raw[0x20000:0x20008] = bytes(8)
    base.write_bytes(raw)
    assert b"is damaged" in volume("check", base, code=1).stderr
