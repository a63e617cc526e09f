"""Commit and apply into qcow2: generated images, cuts at every write, a full disk."""

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.volumes.qcow2.apply import apply_qcow2
from smallstack.volumes.qcow2.chain import Files
from smallstack.volumes.qcow2.commit import commit
from smallstack.volumes.qcow2.errors import (
    BackingError,
    DiskDamagedError,
    DiskUnsupportedError,
    DiskUnwritableError,
    StreamEndsError,
    WrongBaseError,
)
from smallstack.volumes.qcow2.stream import StreamReader
from tests.volumes.qcow2.generate import random_image, write_image
from tests.volumes.qcow2.reference import Reference
from tests.volumes.qcow2.test_qemu import qemu_check, qemu_img
from tests.volumes.qcow2.test_stream import make_stream

COMMITS = int(os.environ.get("SMALLSTACK_QCOW2_COMMITS", "16"))


def random_pair(directory: Path, seed: int) -> tuple[Path, Path, list[bytes]]:
    """A qcow2 base (perhaps over a raw file), an overlay of it, and what its snapshots read as."""
    rng = random.Random(seed)
    base = random_image(rng, backing=True)
    if rng.random() < 0.4:
        (directory / "raw").write_bytes(rng.randbytes(rng.randrange(1, 200) * 512))
        base.backing = ("raw", "raw")
    write_image(base, directory / "base", rng)
    top = random_image(rng, backing=True)
    top.backing, top.sizes = ("base", "qcow2"), []
    fixed = base.version == 2 and len(base.states) > 1
    top.size = base.size if fixed else max(top.size, base.size)
    last = top.states[-1]
    top.states = [{at: c for at, c in last.items() if at * top.cluster < top.size}]
    write_image(top, directory / "top", rng)
    moments = [Reference(directory / "base", i).read() for i in range(len(base.states) - 1)]
    return directory / "base", directory / "top", moments


def is_clean(path: Path, told: object, *, qemu: bool = False) -> None:
    with Files() as files:
        image = files.open(path).image
        assert image is not None
        verdict = image.check()
        assert (verdict["corruptions"], verdict["leaks"]) == (0, 0), (told, verdict)
    if qemu:
        theirs = qemu_check(path)
        assert theirs.get("corruptions", 0) == theirs.get("leaks", 0) == 0, (told, theirs)


def test_commit_of_generated_images(tmp_path: Path) -> None:
    for seed in range(COMMITS):
        base, top, moments = random_pair(tmp_path, 500 + seed)
        want = Reference(top).read()
        commit(top)
        assert Reference(base).read() == want, seed
        assert Reference(top).read() == want, seed
        assert [Reference(base, i).read() for i in range(len(moments))] == moments, seed
        is_clean(base, seed, qemu=seed % 6 == 0)
        if seed % 4 == 0:
            assert commit(top) >= 0  # once more changes nothing
            assert Reference(base).read() == want, seed
            is_clean(base, seed)
        for file in tmp_path.iterdir():
            file.unlink()


def test_apply_to_generated_images(tmp_path: Path) -> None:
    for seed in range(COMMITS // 2):
        base, top, moments = random_pair(tmp_path, 600 + seed)
        want = Reference(top).read()
        stream = make_stream(base, top)
        look = StreamReader(io.BytesIO(stream), "stream") if seed % 2 else None
        apply_qcow2(StreamReader(io.BytesIO(stream), "stream"), base, look)
        assert Reference(base).read() == want, seed
        assert [Reference(base, i).read() for i in range(len(moments))] == moments, seed
        is_clean(base, seed)
        for file in tmp_path.iterdir():
            file.unlink()


def test_commit_into_a_raw_base(tmp_path: Path) -> None:
    for seed in range(12):
        rng = random.Random(700 + seed)
        raw, top = tmp_path / "raw", tmp_path / "top"
        raw.write_bytes(rng.randbytes(rng.randrange(1, 200) * 512))
        image = random_image(rng, backing=True)
        image.backing, image.sizes, image.states = ("raw", "raw"), [], image.states[-1:]
        write_image(image, top, rng)
        want = Reference(top).read()
        commit(top)
        assert raw.read_bytes()[: len(want)] == want, seed
        assert Reference(top).read() == want


def test_a_cut_stream_leaves_the_old_disk(tmp_path: Path) -> None:
    base, top, _ = random_pair(tmp_path, 601)
    before, want = base.read_bytes(), Reference(top).read()
    stream = make_stream(base, top)
    with pytest.raises(StreamEndsError):
        apply_qcow2(StreamReader(io.BytesIO(stream[:-50]), "stream"), base)
    old = Reference(base).read()
    assert len(base.read_bytes()) >= len(before)
    is_clean(base, "cut")
    apply_qcow2(StreamReader(io.BytesIO(stream), "stream"), base)
    assert Reference(base).read() == want != old


def test_refusals(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    with pytest.raises(DiskUnsupportedError, match="no backing file"):
        commit(base)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    subprocess.run(["qemu-io", "-c", "write 0 64k", top], check=True, capture_output=True)
    qemu_img("bitmap", "--add", base, "b")
    with pytest.raises(DiskUnsupportedError, match="bitmaps"):
        commit(top)
    qemu_img("bitmap", "--remove", base, "b")
    with base.open("r+b") as file:  # an L1 table that counts do not know of
        file.seek(0x20000)
        file.write(bytes(8))
    with pytest.raises(DiskDamagedError, match="count is too low"):
        commit(top)
    stream = make_stream(top, top)
    with pytest.raises(WrongBaseError):
        small = tmp_path / "small"
        qemu_img("create", "-q", "-f", "qcow2", small, "512k")
        apply_qcow2(StreamReader(io.BytesIO(stream), "stream"), small)


def test_not_while_qemu_has_it(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    subprocess.run(["qemu-io", "-c", "write 0 64k", top], check=True, capture_output=True)
    with subprocess.Popen(
        ["qemu-io", top], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as busy:
        assert busy.stdin is not None
        assert busy.stdout is not None
        busy.stdin.write("read 0 512\n")
        busy.stdin.flush()
        assert "read" in busy.stdout.readline()
        with pytest.raises(DiskUnwritableError, match="somebody else has it open"):
            commit(top)
        busy.stdin.close()
        busy.wait()
    commit(top)


_CUT = """
import sys
from pathlib import Path
from smallstack.volumes.qcow2.commit import commit
commit(Path(sys.argv[1]))
"""

_KILLER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    static long left = -1;
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (real == NULL) {
        real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
        left = atol(getenv("WRITES"));
    }
    if (left-- == 0) {
        real(fd, data, length / 2 / 512 * 512, offset);
        kill(getpid(), SIGKILL);
    }
    return real(fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite(fd, data, length, offset);
}
"""


def test_killed_at_any_write_it_is_the_old_disk_or_the_new(tmp_path: Path) -> None:
    library = tmp_path / "killer.so"
    (tmp_path / "killer.c").write_text(_KILLER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "killer.c"], check=True)
    place = tmp_path / "disks"
    place.mkdir()
    base, top, moments = random_pair(place, 805)
    assert moments
    saved, old, new = base.read_bytes(), Reference(base).read(), Reference(top).read()
    seen = set()
    writes, step = 0, 1
    while True:
        base.write_bytes(saved)
        done = subprocess.run(
            [sys.executable, "-c", _CUT, top],
            env={**os.environ, "LD_PRELOAD": str(library), "WRITES": str(writes)},
            check=False,
        )
        now = Reference(base).read()
        assert now in (old, new), writes
        seen.add(now == new)
        assert Reference(top).read() == new, writes
        assert [Reference(base, i).read() for i in range(len(moments))] == moments, writes
        with Files() as files:
            opened = files.open(base).image
            assert opened is not None
            assert opened.check()["corruptions"] == 0, writes
        if done.returncode == 0:
            break
        commit(top)
        assert Reference(base).read() == new, writes
        is_clean(base, writes)
        writes += step
        step = max(1, writes // 2)
    assert seen == {True, False}


@pytest.mark.root
def test_a_full_disk_leaves_the_old_one(tmp_path: Path, small_disk: Path) -> None:
    base, top = small_disk / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "64M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 2M", base], check=True, capture_output=True)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    subprocess.run(["qemu-io", "-c", "write -P 2 1M 60M", top], check=True, capture_output=True)
    before, used = base.read_bytes(), base.stat().st_blocks
    with pytest.raises(DiskUnwritableError, match="No space left"):
        commit(top)
    assert base.read_bytes() == before
    assert base.stat().st_blocks <= used + 8  # ext4's own block of extents
    is_clean(base, "full", qemu=True)


def test_backing_that_is_not_allowed(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
    with Files() as files, pytest.raises(BackingError, match="is not allowed here"):
        files.open(top, backing=False)
