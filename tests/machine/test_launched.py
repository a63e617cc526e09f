"""What a launched process is: confined, with the descriptors and the devices of its spec."""

import asyncio
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import find
from smallstack.machine.spec import DiskSpec, NicSpec
from tests.machine.conftest import (
    NOBODY,
    REAL_QEMU,
    Launch,
    MakeSpec,
    console_says,
)

pytestmark = REAL_QEMU


def empty_disk(path: Path, sectors: int = 2048) -> None:
    """A sparse file that nobody but us may read."""
    path.touch(mode=0o600)
    os.truncate(path, sectors * 512)


def overlay(directory: Path, name: str, backing: str) -> None:
    """A qcow2 image over a raw one, both in ``directory``."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", name],
        cwd=directory,
        check=True,
    )


async def test_every_thread_is_confined(make_spec: MakeSpec, boot: Launch, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    empty_disk(image)
    machine = await boot(make_spec("obey", disks=(DiskSpec(path=image),)))
    await machine.started()
    await console_says(machine, b"ready\n")
    threads = list(Path(f"/proc/{machine.pid}/task").iterdir())
    assert len(threads) >= 3
    for thread in threads:
        status = dict(
            line.split(":", 1) for line in (thread / "status").read_text().splitlines() if line
        )
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["Gid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].split() == []
    assert os.getsid(machine.pid) == machine.pid != os.getsid(0)
    assert Path(f"/proc/{machine.pid}/cwd").readlink() == Path("/")


async def test_it_has_the_descriptors_of_its_command_line_and_no_others(
    make_spec: MakeSpec, boot: Launch
) -> None:
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    machine = await boot(make_spec("obey"))
    await machine.started()
    os.close(secret)
    links = {
        int(path.name): str(path.readlink()) for path in Path(f"/proc/{machine.pid}/fd").iterdir()
    }
    assert links[0] == "/dev/null"
    assert links[1] == links[2] == str(machine.directory / "qemu.log")
    assert all(links[number].startswith("socket:") for number in (3, 4, 5))
    assert links[6].endswith("guest.elf")
    others = {link for number, link in links.items() if number > 6}
    allowed = re.compile(r"(anon_inode:|socket:|pipe:|/dev/shm/|/memfd:)")
    assert all(allowed.match(link) for link in others), others


async def test_devices_are_where_the_spec_puts_them(
    make_spec: MakeSpec, boot: Launch, tmp_path: Path, tap: Callable[[], int]
) -> None:
    """The guest finds them in Linux's order: disks, network; each opened by us."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name, sectors in (("brick", 4096), ("data", 2048)):
        empty_disk(closed / name, sectors)
    await asyncio.to_thread(overlay, closed, "layer", "brick")
    disks = (
        DiskSpec(path=closed / "layer", format="qcow2", backing=closed / "brick"),
        DiskSpec(path=closed / "data"),
    )
    nics = tuple(NicSpec(mac=f"52:54:00:00:00:{number:02x}", tap_fd=tap()) for number in (77, 78))
    machine = await boot(make_spec("slots", disks=disks, nics=nics))
    said = await console_says(machine, b"end of slots\n")
    found = re.findall(rb"slot (\d) (\w+) (\d+)", said)
    assert found == [
        (b"4", b"blk", b"4096"),
        (b"3", b"blk", b"2048"),
        (b"2", b"net", b"77"),
        (b"1", b"net", b"78"),
        (b"0", b"other", b"3"),
    ]


async def test_disks_of_q35(make_spec: MakeSpec, boot: Launch, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        empty_disk(tmp_path / name)
    disks = (
        DiskSpec(path=tmp_path / "a"),
        DiskSpec(path=tmp_path / "b", interface="nvme"),
        DiskSpec(path=tmp_path / "c", interface="ide"),
        DiskSpec(path=tmp_path / "d", read_only=True),
    )
    spec = make_spec(
        "acpi",
        machine_type="q35",
        memory_mib=64,
        vcpus=2,
        disks=disks,
        uuid="8b0f8d3c-2f5f-4d0c-9d6f-2d6c9f9e0001",
    )
    machine = await boot(spec)
    await console_says(machine, b"ready\n")
    nodes = await machine._monitor.execute("query-named-block-nodes")
    assert isinstance(nodes, list)
    named = {node["node-name"]: node["ro"] for node in nodes}
    disks_found = {name: named[name] for name in sorted(named) if name.startswith("disk")}
    assert disks_found == {"disk0": False, "disk1": False, "disk2": False, "disk3": True}


async def test_a_kernel_that_others_may_not_read_is_copied(
    make_spec: MakeSpec, boot: Launch, tmp_path: Path, guest_kernel: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guest_kernel.read_bytes())
    kernel.chmod(0o600)
    machine = await boot(make_spec("obey", kernel=kernel))
    await console_says(machine, b"ready\n")


async def test_a_directory_with_a_long_name(
    make_spec: MakeSpec, boot: Launch, tmp_path: Path
) -> None:
    directory = tmp_path / ("d" * 120) / "vm"
    directory.mkdir(parents=True)
    machine = await boot(make_spec("obey", directory=directory))
    await console_says(machine, b"ready\n")
    await machine.release()
    found = await find(directory)
    assert found is not None
    assert await found.stop() is ExitReason.GUEST_SHUTDOWN
