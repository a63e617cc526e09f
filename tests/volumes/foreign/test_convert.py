"""Other formats as raw disks: the same bytes, or one line and no file; the converter is shut in."""

import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import DiskFullError
from smallstack.hypervisor.roots import full_disk
from smallstack.machine.start import process_start_time
from smallstack.volumes.confined import User
from smallstack.volumes.errors import ConverterMissingError, DiskImageError
from smallstack.volumes.foreign import convert as converting
from smallstack.volumes.foreign.convert import convert, flatten
from smallstack.volumes.foreign.formats import (
    SECTOR,
    DiskFormat,
    FormatError,
    check_whole,
    recognise,
)
from smallstack.volumes.foreign.sparse import SparseFile
from tests.network.world import settled
from tests.volumes.disks import run
from tests.volumes.foreign.images import MIB, SIZE, every_format, make_raw
from tests.volumes.foreign.images import convert as make

pytestmark = pytest.mark.root
USER = (65534, 65534)
LIMIT = 64 * MIB


async def no_limit(_size: int) -> None:
    return


async def convert_it(source: Path, out: Path) -> bytes:
    """The disk in ``source``; ``out`` is its file."""
    out.unlink(missing_ok=True)
    data = source.read_bytes()
    format_ = recognise(data[:65536])
    with SparseFile(out) as target:
        if format_ is DiskFormat.QCOW2:
            await flatten(source, target, "x", LIMIT, no_limit)
        else:
            try:
                size = check_whole(format_, lambda at, n: data[at : at + n], len(data))
            except FormatError as error:
                raise DiskImageError(name="x", detail=str(error)) from None
            if size > LIMIT:
                raise DiskImageError(name="x", detail="too large")
            await convert(source, format_, target, size, USER, "x")
        assert os.fstat(target.fd).st_uid == 0
    return out.read_bytes()


async def test_every_format(tmp_path: Path) -> None:
    images = every_format(tmp_path)
    raw = images.pop("raw").read_bytes()
    for image in images.values():
        assert await convert_it(image, tmp_path / "out") == raw
        assert (tmp_path / "out").stat().st_blocks * 512 < 700_000


async def test_cut_and_flipped(tmp_path: Path) -> None:
    """Nothing but one line, or the disk that the file still shows."""
    images = every_format(tmp_path)
    raw = images.pop("raw").read_bytes()
    rng = random.Random(7)
    for name, image in images.items():
        data = image.read_bytes()
        broken = tmp_path / "broken"
        for cut in (len(data) // 2, len(data) - 70_000, 700):
            broken.write_bytes(data[:cut])
            with pytest.raises(DiskImageError) as caught:
                await convert_it(broken, tmp_path / "out")
                pytest.fail(f"{name} cut off after {cut} bytes was taken")
            assert "\n" not in str(caught.value), name
            assert str(tmp_path) not in str(caught.value), name
            assert "/proc/" not in str(caught.value), name
        taken = 0
        for _ in range(8):
            flipped = bytearray(data)
            flipped[rng.randrange(600)] ^= 1 << rng.randrange(8)
            broken.write_bytes(flipped)
            format_ = recognise(bytes(flipped[:65536]))
            if format_ is DiskFormat.RAW:
                continue
            try:
                disk = await convert_it(broken, tmp_path / "out")
            except (DiskImageError, FormatError) as error:
                assert "\n" not in str(error), name
                continue
            taken += 1
            assert disk == shown(broken, format_.value, raw), name
        assert taken > 2, name


def shown(image: Path, format_: str, raw: bytes) -> bytes:
    """The disk in a file with a bit that is wrong, by a reader of its own.

    A size, a table's place or an entry in it may have become another one that is as good; nothing
    but what the file says now is right then. A reader may also refuse what another has no use for
    (tables of reference counts): then nothing of the disk may have changed.
    """
    read = image.with_name("read")
    command: list[str | Path] = ["qemu-img", "convert", "-f", format_, "-O", "raw", image, read]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return raw
    size = json.loads(run("qemu-img", "info", "-U", "--output=json", "-f", format_, image))
    # QEMU leaves an incomplete last sector out; ours is filled up with zeros.
    return read.read_bytes().ljust(-(-size["virtual-size"] // SECTOR) * SECTOR, b"\0")


async def test_qcow2_that_leads_elsewhere(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    over, outside = tmp_path / "over", tmp_path / "outside"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, over)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret}.d", outside, "1M")
    locked = make_small(tmp_path)
    data = bytearray(locked.read_bytes())
    data[32:36] = struct.pack(">I", 2)  # encrypted by LUKS
    locked.write_bytes(data)
    for image, told in ((over, "backing file"), (outside, "in another file"), (locked, "encrypt")):
        with pytest.raises(DiskImageError, match=told) as caught:
            await convert_it(image, tmp_path / "out")
        assert "\n" not in str(caught.value)


async def test_qcow2_of_any_size(tmp_path: Path) -> None:
    """The disk may be larger than what is taken, or than what there is room for."""
    image = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1T")
    with pytest.raises(DiskImageError, match="its disk has 1099511627776 bytes: 1 to 67108864"):
        await convert_it(image, tmp_path / "out")

    async def full(_size: int) -> None:
        raise DiskFullError(path="there")

    (tmp_path / "out").unlink()
    with SparseFile(tmp_path / "out") as target, pytest.raises(DiskFullError):
        await flatten(make_small(tmp_path), target, "x", LIMIT, full)


def make_small(directory: Path) -> Path:
    raw = directory / "raw"
    make_raw(raw)
    return make(raw, directory / "small", "qcow2")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where another program stands in the converter's place; other users may go there."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        yield directory


def stand_in(tools: Path, script: str) -> None:
    (tools / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "qemu-img").chmod(0o755)


@pytest.mark.parametrize("user", [USER, None], ids=["root", "unprivileged"])
async def test_the_converter_is_shut_in(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, user: User
) -> None:
    """None is what an unprivileged agent says: the user namespace is all that it needs."""
    stand_in(
        tools,
        "{ id -u; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status;"
        " tail -n +3 /proc/self/net/dev | cut -d: -f1; ls /proc/self/fd;"
        " ulimit -c; ulimit -f; ulimit -v; } >&2; exit 3",
    )
    monkeypatch.setattr(converting, "_reason", lambda said, *_: said.decode())
    source = tmp_path / "source"
    source.write_bytes(bytes(4096))
    with SparseFile(tmp_path / "out") as target, pytest.raises(DiskImageError) as caught:
        await convert(source, DiskFormat.VDI, target, SIZE, user, "x")
    said = caught.value.detail.split()
    assert said[:2] == (["65534", "65534"] if user else ["0", "0"])
    told = dict(zip(said[2:8:2], said[3:8:2], strict=True))
    assert told == {"CapBnd:": "0" * 16, "CapEff:": "0" * 16, "NoNewPrivs:": "1"}
    # No network; standard streams, and what `ls` opens itself.
    assert said[8:-3] == ["lo", "0", "1", "2", "3"]
    assert said[-3:] == ["0", str(SIZE // 512), str((2 << 30) // 1024)]


@pytest.mark.parametrize("user", [USER, None], ids=["root", "unprivileged"])
async def test_the_converter_sees_nothing_of_the_machine(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, user: User
) -> None:
    """What it is told to read and write, and what a program needs to run."""
    kinds = ("net", "ipc", "uts", "mnt")
    stand_in(
        tools,
        "{ for kind in " + " ".join(kinds) + "; do readlink /proc/self/ns/$kind; done;"
        " for place in /*; do [ -L $place ] || echo $place $(ls -A $place | head -n 1); done;"
        " [ -w /dev/shm ] || echo /dev/shm; } >&2; exit 3",
    )
    monkeypatch.setattr(converting, "_reason", lambda said, *_: said.decode())
    (tmp_path / "source").write_bytes(bytes(4096))
    with SparseFile(tmp_path / "out") as target, pytest.raises(DiskImageError) as caught:
        await convert(tmp_path / "source", DiskFormat.VDI, target, SIZE, user, "x")
    lines = caught.value.detail.splitlines()
    for kind, line in zip(kinds, lines, strict=False):
        assert line.startswith(f"{kind}:[") and line != os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115
    found = {line.split()[0]: line.split()[1:] for line in lines[len(kinds) :]}
    own = f"/{tools.parts[1]}"
    libraries = {"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}
    directories = {place for place, first in found.items() if Path(place).is_dir()}
    assert {"/etc", "/root", "/var", "/dev/shm"} <= directories
    shown = {place for place in directories if found[place]}
    assert shown - libraries == {"/dev", "/proc", "/usr", own}


async def test_a_converter_that_cannot_be_shut_in_is_not_run(tmp_path: Path, tools: Path) -> None:
    stand_in(tools, f"touch {tools}/run")
    tools.chmod(0o777)
    (tools / "unshare").write_text("#!/bin/sh\necho 'unshare: not permitted' >&2; exit 1\n")
    (tools / "unshare").chmod(0o755)
    (tmp_path / "source").write_bytes(bytes(4096))
    refused = pytest.raises(OSError, match="qemu-img cannot be shut in: unshare: not permitted")
    with SparseFile(tmp_path / "out") as target, refused:
        await convert(tmp_path / "source", DiskFormat.VDI, target, SIZE, None, "x")
    (tools / "unshare").unlink()
    (tools / "mount").write_text("#!/bin/sh\necho 'mount: denied' >&2; exit 32\n")
    (tools / "mount").chmod(0o755)
    refused = pytest.raises(OSError, match="qemu-img cannot be shut in: mount: denied")
    with SparseFile(tmp_path / "again") as target, refused:
        await convert(tmp_path / "source", DiskFormat.VDI, target, SIZE, USER, "x")
    assert not (tools / "run").exists()


async def test_a_converter_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "source"
    source.touch()
    missing = pytest.raises(ConverterMissingError, match="qemu-img is not there; install qemu-ut")
    with SparseFile(tmp_path / "out") as target, missing:
        await convert(source, DiskFormat.VDI, target, SIZE, USER, "x")


async def test_a_create_that_is_given_up_ends_the_converter(tmp_path: Path, tools: Path) -> None:
    said = tools / "pid"
    said.touch()
    said.chmod(0o666)
    stand_in(tools, f"echo $$ >{said}; exec sleep 600")
    source = tmp_path / "source"
    source.write_bytes(bytes(4096))
    with SparseFile(tmp_path / "out") as target:
        work = asyncio.create_task(convert(source, DiskFormat.VDI, target, SIZE, USER, "x"))
        while not said.read_text().endswith("\n"):
            await asyncio.wait([work], timeout=0.01)
            assert not work.done(), work.exception()
        pid = int(said.read_text())
        work.cancel()
        await asyncio.wait([work])
        assert work.cancelled()
    assert not Path(f"/proc/{pid}").exists()


async def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(60 * MIB))
    for name in ("vdi", "vmdk", "qcow2"):
        image = make(raw, tmp_path / name, name)
        full = pytest.raises(DiskFullError, match="no space left on the disk")
        with full, full_disk(small_disk / "out"):
            await convert_it(image, small_disk / "out")
        (small_disk / "out").unlink()
        image.unlink()


def test_numbers_of_vdi_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """The size of the disk, as this test reads it."""
    data = every_format(tmp_path)["vdi"].read_bytes()
    assert struct.unpack_from("<Q", data, 368) == (SIZE,)


CHILD = """
import asyncio, sys
from pathlib import Path
from smallstack.volumes.foreign.convert import convert
from smallstack.volumes.foreign.formats import DiskFormat
from smallstack.volumes.foreign.sparse import SparseFile

here = Path(sys.argv[1])
target = SparseFile(here / "out")
asyncio.run(convert(here / "source", DiskFormat.VDI, target, 4096, (65534, 65534), "x"))
"""


async def test_a_killed_agent_takes_the_converter_along(tmp_path: Path, tools: Path) -> None:
    said = tools / "pid"
    said.touch()
    said.chmod(0o666)
    stand_in(tools, f"echo $$ >{said}; exec sleep 600")
    (tmp_path / "source").write_bytes(bytes(4096))
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, tmp_path)
    assert await asyncio.to_thread(settled, lambda: said.read_text().endswith("\n"))
    agent.kill()
    await agent.wait()
    assert await asyncio.to_thread(settled, lambda: ended(int(said.read_text())))


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped by whoever inherited it."""
    return process_start_time(pid) is None
