"""A guest of a few hundred instructions, and specs that boot it."""

import asyncio
import ctypes
import fcntl
import itertools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from smallstack.machine.process import Machine, launch
from smallstack.machine.spec import MachineSpec, Verdict
from smallstack.machine.start import process_start_time

HERE = Path(__file__).parent
NOBODY = 65534
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x1002
TCG = Verdict("tcg", "a test", 2_600_000)
KVM = Verdict("kvm", "a test", 2_600_000)
REAL_QEMU = [
    pytest.mark.qemu,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: QEMU gets another user"),
]
"""What marks a module of tests that start QEMU."""
LEFT = {"console", "qemu.log"}
"""What a machine that has ended leaves in its directory."""

MakeSpec = Callable[..., MachineSpec]
Launch = Callable[[MachineSpec], Awaitable[Machine]]


def compile_guest(target: Path) -> None:
    """The guest of guest/guest.c, entered by PVH."""
    subprocess.run(
        [
            "gcc",
            *("-m32", "-march=i686", "-mno-sse", "-O2", "-Wall", "-Wextra", "-Werror"),
            *("-ffreestanding", "-fno-pic", "-fno-pie", "-fno-stack-protector"),
            *("-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-fno-builtin"),
            *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack"),
            *("-Wl,--no-warn-rwx-segments", f"-Wl,-T,{HERE / 'guest' / 'guest.ld'}"),
            *(str(HERE / "guest" / "guest.c"), "-o", str(target)),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="session")
def guest_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("guest") / "guest.elf"
    compile_guest(target)
    return target


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="smallstack-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_spec(tmp_path: Path, guest_kernel: Path) -> MakeSpec:
    """``make_spec("deed", **changes)``: a machine whose guest does that."""
    numbers = itertools.count(2)

    def make(deed: str = "obey", **changes: Any) -> MachineSpec:
        name = f"198.51.100.{next(numbers)}"
        directory = changes.pop("directory", None) or tmp_path / name
        directory.mkdir(mode=0o700, exist_ok=True)
        fields: dict[str, Any] = {
            "name": name,
            "directory": directory,
            "verdict": TCG,
            "memory_mib": 32,
            "kernel": guest_kernel,
            "kernel_args": f"do={deed}",
            "uid": NOBODY,
            "gid": NOBODY,
        }
        return MachineSpec(**fields | changes)

    return make


@pytest.fixture
def ends() -> Iterator[Callable[[int], None]]:
    """Tell it a process's id, and that process is no longer there when the test is over.

    It holds no descriptor meanwhile: tests count them.
    """
    watched: list[tuple[int, int]] = []

    def watch(pid: int) -> None:
        if began := process_start_time(pid):
            watched.append((pid, began))

    yield watch
    for pid, began in watched:
        if process_start_time(pid) == began:
            os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # another process's child
                os.waitpid(pid, 0)


@pytest.fixture
async def boot(ends: Callable[[int], None]) -> AsyncIterator[Launch]:
    """`launch`, with an end to every machine that the test leaves running."""
    launched: list[Machine] = []

    async def run(spec: MachineSpec) -> Machine:
        machine = await launch(spec)
        ends(machine.pid)
        launched.append(machine)
        return machine

    yield run
    for machine in launched:
        with suppress(asyncio.CancelledError):  # released: its own affair
            machine.kill()
            await machine.wait()


async def console_says(machine: Machine, text: bytes, limit: float = 60.0) -> bytes:
    """Wait until the guest has written ``text``; everything it wrote so far."""
    directory = machine.directory / "console"

    def written() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(directory.glob("*.log")))

    async with asyncio.timeout(limit), machine.console.attach() as session:
        while text not in written():
            if not await session.read():
                raise AssertionError(f"the machine ended and had said {written()!r}")
    return written()


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def is_gone(machine: Machine) -> bool:
    return not Path(f"/proc/{machine.pid}").exists()


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def tap() -> Iterator[Callable[[], int]]:
    """Opens a tap in a network namespace of its own, which goes with its descriptor."""
    opened: list[int] = []

    def in_own_namespace() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        opened.append(fd)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP_NO_PI))

    def make() -> int:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(in_own_namespace).result()
        return opened[-1]

    yield make
    for fd in opened:
        os.close(fd)
