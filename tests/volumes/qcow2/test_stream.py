"""Diff streams: whole, cut off, damaged, applied to the wrong disk, to a full disk."""

import io
import os
import random
import subprocess
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.apply import Applied, apply_raw, progress
from smallstack.volumes.qcow2.chain import Files
from smallstack.volumes.qcow2.codec import Plan
from smallstack.volumes.qcow2.errors import (
    DiskUnwritableError,
    StreamDamagedError,
    StreamEndsError,
    StreamError,
    WrongBaseError,
)
from smallstack.volumes.qcow2.extents import differing
from smallstack.volumes.qcow2.stream import StreamReader, plan_stream, write_stream
from tests.volumes.qcow2.generate import random_image, write_chain, write_image
from tests.volumes.qcow2.reference import Reference
from tests.volumes.qcow2.test_qemu import qemu_img

STREAMS = int(os.environ.get("SMALLSTACK_QCOW2_COMMITS", "16"))


def make_stream(
    old: Path, new: Path, *, snapshot: str | None = None, old_digests: bool = True
) -> bytes:
    """The stream from ``old`` to ``new``, or from a snapshot of ``old`` to it."""
    with Files() as files:
        before, after = files.open(old, snapshot=snapshot), files.open(new)
        extents = differing(before, after)
        plan = plan_stream(before, after, extents, old_digests=old_digests)
        out = io.BytesIO()
        assert write_stream(files, before, after, plan, out) == len(out.getvalue())
        return out.getvalue()


def rest_of_stream(old: Path, new: Path, disk: Path) -> bytes:
    """What is missing where an apply to ``disk`` was cut off."""
    known = progress(disk)
    assert known is not None
    with Files() as files:
        before, after = files.open(old), files.open(new)
        plan = plan_stream(before, after, differing(before, after))
        assert plan.identity == known.identity
        out = io.BytesIO()
        write_stream(
            files, before, after, plan, out, first_block=known.next_block, chain=known.chain
        )
        return out.getvalue()


def apply(stream: bytes, disk: Path, *, pipe: bool = False) -> Applied:
    look = None if pipe else StreamReader(io.BytesIO(stream), "stream")
    return apply_raw(StreamReader(io.BytesIO(stream), "stream"), disk, look)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, an overlay with 7 MiB in it, and the base's content as a raw disk."""
    base, top, raw = tmp_path / "base", tmp_path / "top", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", base, "64M")
    write = ["-c", "write -P 1 0 4M", "-c", "write -P 2 20M 1M"]
    subprocess.run(["qemu-io", *write, base], check=True, capture_output=True)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    write = ["-c", "write -P 3 1M 3M", "-c", "write -z 20M 512k", "-c", "write -P 4 40000k 4M"]
    subprocess.run(["qemu-io", *write, top], check=True, capture_output=True)
    qemu_img("convert", "-O", "raw", base, raw)
    return base, top, raw


def left_behind(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if "smallstack" in path.name}


def test_generated_disks(tmp_path: Path) -> None:
    for seed in range(STREAMS):
        rng = random.Random(400 + seed)
        path = write_chain(tmp_path, 400_000 + seed)
        with Files() as files:
            disk = files.open(path)
            states: list[tuple[Path, str | None]] = [(layer.path, None) for layer in disk.layers]
            states += [(path, s[0]) for s in (disk.image.snapshots() if disk.image else [])]
            old_path, snapshot = rng.choice(states)
            raw = tmp_path / "raw"
            old = files.open(old_path, snapshot=snapshot)
            raw.write_bytes(old.view.read(0, old.size))
        stream = make_stream(old_path, path, snapshot=snapshot, old_digests=seed % 3 > 0)
        apply(stream, raw, pipe=seed % 2 == 0)
        assert raw.read_bytes() == Reference(path).read(), seed
        assert apply_again_is_refused_or_same(stream, raw), seed
        for file in tmp_path.iterdir():
            file.unlink()


def apply_again_is_refused_or_same(stream: bytes, raw: Path) -> bool:
    """A disk that is new already is taken for the old one only where the size is the same."""
    before = raw.read_bytes()
    plan = StreamReader(io.BytesIO(stream), "stream").plan
    if plan.old_size != plan.new_size:
        with pytest.raises(WrongBaseError, match="bytes, not"):
            apply(stream, raw)
    else:
        apply(stream, raw)
    return raw.read_bytes() == before


def test_qemu_finds_the_result_equal(pair: tuple[Path, Path, Path]) -> None:
    base, top, raw = pair
    done = apply(make_stream(base, top), raw)
    assert done == Applied(112, 7 << 20, 0)
    subprocess.run(["qemu-img", "compare", top, raw], check=True, capture_output=True)
    with raw.open("rb") as file:
        assert os.lseek(file.fileno(), 20 << 20, os.SEEK_DATA) >= (20 << 20) + (512 << 10)
    assert progress(raw) is None


def test_goes_on_where_it_was_cut_off(pair: tuple[Path, Path, Path]) -> None:
    base, top, raw = pair
    stream = make_stream(base, top)
    cut = stream[: len(stream) // 2]
    with pytest.raises(StreamEndsError, match="go on from block"):
        apply(cut, raw, pipe=True)
    assert progress(raw) is not None
    apply(rest_of_stream(base, top, raw), raw, pipe=True)
    subprocess.run(["qemu-img", "compare", top, raw], check=True, capture_output=True)
    assert progress(raw) is None


def test_goes_on_with_the_same_stream_over_torn_blocks(pair: tuple[Path, Path, Path]) -> None:
    base, top, raw = pair
    stream = make_stream(base, top)
    with pytest.raises(StreamEndsError):
        apply(stream[: len(stream) * 2 // 3], raw, pipe=True)
    with raw.open("r+b") as file:  # a power cut in the middle of a block
        file.seek((1 << 20) + 100)
        file.write(b"neither")
    apply(stream, raw)
    subprocess.run(["qemu-img", "compare", top, raw], check=True, capture_output=True)


def test_another_stream_is_refused_meanwhile(pair: tuple[Path, Path, Path]) -> None:
    base, top, raw = pair
    stream = make_stream(base, top)
    with pytest.raises(StreamEndsError):
        apply(stream[:-60], raw, pipe=True)
    with pytest.raises(WrongBaseError, match="another stream is half applied"):
        apply(make_stream(base, top, old_digests=False), raw)
    with pytest.raises(StreamError, match="it begins at block 112, needed is 0"):
        late = StreamReader(io.BytesIO(stream), "stream").plan
        head = late.head(112, bytes(32))
        raw.with_name("raw.applying").unlink()
        apply(head, raw, pipe=True)


def test_the_wrong_base_stays_as_it_is(pair: tuple[Path, Path, Path]) -> None:
    base, top, raw = pair
    stream = make_stream(base, top)
    with raw.open("r+b") as file:
        file.seek((40000 << 10) + 5000)
        file.write(b"x")
    before = raw.read_bytes()
    with pytest.raises(WrongBaseError, match="its block at byte 40960000 has another content"):
        apply(stream, raw)
    assert raw.read_bytes() == before
    assert progress(raw) is None
    raw.write_bytes(b"short")
    with pytest.raises(WrongBaseError, match="it has 5 bytes, not 67108864"):
        apply(stream, raw)


def test_every_flipped_byte_is_found(pair: tuple[Path, Path, Path]) -> None:
    base, top, _ = pair
    stream = make_stream(base, top)
    rng = random.Random(5)
    places = [*range(0, 160, 3), *(rng.randrange(len(stream)) for _ in range(150))]
    places += range(len(stream) - 48, len(stream))
    for at in places:
        damaged = bytearray(stream)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises((StreamDamagedError, StreamEndsError)):
            reader = StreamReader(io.BytesIO(damaged), "stream")
            for frame in reader.frames():
                reader.data(frame)


def test_a_header_that_lies_costs_no_memory() -> None:
    header = bytearray(160)
    header[:8] = b"SSDIFF\0\1"
    header[8:12] = (160).to_bytes(4, "big")
    header[40:48] = (1 << 23).to_bytes(8, "big")
    with pytest.raises(StreamEndsError):
        StreamReader(io.BytesIO(header + bytes(100)), "stream")
    header[40:48] = (1 << 60).to_bytes(8, "big")
    with pytest.raises(StreamDamagedError, match="too many extents"):
        StreamReader(io.BytesIO(header + bytes(100)), "stream")


@pytest.mark.root
def test_a_full_disk_is_noticed_before_a_change(
    pair: tuple[Path, Path, Path], small_disk: Path
) -> None:
    base, top, raw = pair
    stream = make_stream(base, top)
    disk = small_disk / "disk"
    subprocess.run(["cp", "--sparse=always", raw, disk], check=True)
    before = disk.read_bytes()
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (free.f_bavail * free.f_bsize) - (1 << 20))
    used = disk.stat().st_blocks
    with pytest.raises(DiskUnwritableError, match="No space left"):
        apply(stream, disk)
    assert disk.read_bytes() == before
    assert disk.stat().st_blocks == used
    assert progress(disk) is None
    filler.unlink()
    apply(stream, disk)
    subprocess.run(["qemu-img", "compare", top, disk], check=True, capture_output=True)


def test_blocks_lie_where_the_extents_say(pair: tuple[Path, Path, Path]) -> None:
    base, top, _ = pair
    with Files() as files:
        old, new = files.open(base), files.open(top)
        extents = differing(old, new)
        plan = plan_stream(old, new, extents)
    assert Plan.read(plan.head()).extents() == list(extents)
    places = [
        place for first in range(0, plan.blocks, plan.frame_blocks) for place in plan.places(first)
    ]
    want = []
    for offset, length, zero in extents:
        at = offset
        while not zero and at < offset + length:
            end = min(at // 65536 * 65536 + 65536, offset + length)
            want.append((at, end - at))
            at = end
    assert places == want


def test_streams_of_random_images_stay_small(tmp_path: Path) -> None:
    """Nothing is sent that did not change: an equal disk is a head and a trailer."""
    rng = random.Random(1)
    write_image(random_image(rng), tmp_path / "disk", rng)
    assert len(make_stream(tmp_path / "disk", tmp_path / "disk")) == 160 + 48
