"""``smallstack demo`` and ``smallstack down``: the outside of the demo.

The demo itself runs inside namespaces of its own (``demo_inside``). Without ``--keep`` the end of
this process, however it comes, ends everything inside. With ``--keep`` it leaves ``unshare`` behind
in a session of its own and notes it for ``down``.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import click
import msgspec

from smallstack.cli.options import fail
from smallstack.control.namespace import (
    INSIDE,
    NamespaceError,
    first_inside,
    inside,
    run_in_namespaces,
    unshare_command,
)
from smallstack.settings import cache_directory

RUN_PRIVATE = "run"
NOTED = b"noted\n"
ELF, SCRIPT = b"\x7fELF", b"#!"
ELF64, ELF64_HEADER = ELF + b"\x02\x01", 64
"""Of 64 bits, little end first; bytes of its header."""
PT_INTERP = b"\x03\0\0\0"
"""The type of the program header that names a dynamic linker."""


class Kept(msgspec.Struct):
    """A demo that was left running: its ``unshare`` process, the first process inside."""

    pid: int
    start_time: int
    init_pid: int


@click.command("demo")
@click.option("--keep", is_flag=True, help="leave it running; `down` ends it")
@click.option(
    "--count", type=click.IntRange(1, 100), default=1, show_default=True, help="how many VMs"
)
@click.option(
    "--run",
    "program",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a static program to start in the guest, after its network is up",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/demo.png"),
    show_default=True,
    help="where the picture goes",
)
@click.option("--status-fd", type=int, hidden=True)
def command(
    keep: bool, count: int, program: Path | None, picture: Path, status_fd: int | None
) -> None:
    """Create a real VM through the same RPC that production uses; touches no network of yours."""
    if inside():
        from smallstack.cli.demo_inside import run_inside

        sys.exit(run_inside(cache_directory(), count, program, picture, status_fd))
    if os.geteuid() != 0:
        fail("the demo makes namespaces, a bridge and taps, which needs root: sudo ./dev demo")
    if running := read_kept():
        fail(f"a kept demo is running (process {running.pid}); end it with: {dev()} down")
    if program and (why_not := unfit(program)):
        fail(f"--run {program}: {why_not}")
    lock = _lock()
    try:
        sys.exit(_leave_running(lock) if keep else run_in_namespaces(_own_command(), [lock]))
    except NamespaceError as error:
        fail(str(error))


@click.command("down")
def down() -> None:
    """End a kept demo and all its VMs."""
    kept = read_kept()
    if kept is None:
        print("no demo is running", file=sys.stderr)
        return
    pidfd = os.pidfd_open(kept.pid)
    # unshare hands no signal on; its end is the end of everything inside (--kill-child).
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _wait_gone(pidfd)
    directory = _state_directory()
    fcntl.flock(directory, fcntl.LOCK_EX)  # the last process inside is gone
    os.close(directory)
    kept_file().unlink(missing_ok=True)
    print("the demo is down", file=sys.stderr)


def unfit(program: Path) -> str:
    """Why the guest, which has busybox and no libraries, cannot run a program; "" if it may."""
    with program.open("rb") as file:
        head = file.read(4096)
    if not head.startswith((ELF, SCRIPT)):
        return "neither a static program nor a script beginning with #!"
    if head.startswith(ELF64) and len(head) >= ELF64_HEADER:  # its fields as elf(5) has them
        (start,) = struct.unpack_from("<Q", head, 32)  # e_phoff
        size, count = struct.unpack_from("<HH", head, 54)  # e_phentsize, e_phnum
        places = range(start, start + size * count, size or 1)
        if any(head[place : place + 4] == PT_INTERP for place in places):
            return "it is linked dynamically: the guest has no libraries, link it with -static"
    return ""


def kept_file() -> Path:
    """Where a kept demo is noted."""
    return cache_directory() / "demo" / "kept.json"


def read_kept() -> Kept | None:
    """The kept demo, if its process still is the one noted; a stale note is removed."""
    try:
        kept = msgspec.json.decode(kept_file().read_bytes(), type=Kept)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    if _start_time(kept.pid) != kept.start_time:
        kept_file().unlink(missing_ok=True)
        return None
    return kept


def dev() -> str:
    """The command that a person types to reach this program."""
    checkout = os.environ.get("SMALLSTACK_CHECKOUT")
    return f"{checkout}/dev" if checkout else "smallstack"


def _own_command() -> list[str]:
    return [sys.executable, "-m", "smallstack.cli.smallstack", *sys.argv[1:]]


def _lock() -> int:
    """A descriptor that is locked until the last process of the demo, which inherits it, ends."""
    fd = _state_directory()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another demo is running, its state is in {kept_file().parent}: wait for its end")
    return fd


def _state_directory() -> int:
    kept_file().parent.mkdir(parents=True, exist_ok=True)
    return os.open(kept_file().parent, os.O_RDONLY | os.O_DIRECTORY)


def _leave_running(lock: int) -> int:
    """Start the demo in a session of its own; return when it says how it went.

    The demo stays only when it is told that it was noted for `down`: the end of this process
    before that, however it comes, ends it.
    """
    ours, its = socket.socketpair()
    environment = {**os.environ, INSIDE: "1"}
    vector = unshare_command([*_own_command(), "--status-fd", str(its.fileno())])
    # Through pipes: what stays behind must not hold on to the caller's terminal or pipe.
    process = subprocess.Popen(
        vector,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[its.fileno(), lock],
        start_new_session=True,
    )
    its.close()
    try:
        verdict = _relay(process, ours.fileno())
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        return 130
    word, _, address = verdict.decode().strip().partition(" ")
    if word != "up":
        return process.wait() or 1
    kept = Kept(process.pid, _start_time(process.pid) or 0, first_inside(process.pid)[0])
    kept_file().write_bytes(msgspec.json.encode(kept))
    ours.sendall(NOTED)
    _print_next(kept.init_pid, address)
    return 0


def _relay(process: subprocess.Popen[bytes], status: int) -> bytes:
    """Show what the demo prints until it says on ``status`` how it went; that word, b"" if none."""
    assert process.stdout
    assert process.stderr
    outputs = {process.stdout.fileno(): sys.stdout, process.stderr.fileno(): sys.stderr}
    verdict = b""
    with selectors.DefaultSelector() as selector:
        for fd in (*outputs, status):
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        # After the word, only what is in the pipes already: they stay open as long as the demo.
        while selector.get_map() and (ready := selector.select(0 if verdict else None)):
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                if key.fd == status:
                    verdict += data
                    selector.unregister(key.fd)
                elif data:
                    outputs[key.fd].buffer.write(data)
                    outputs[key.fd].flush()
                else:
                    selector.unregister(key.fd)
    return verdict


def _print_next(init_pid: int, address: str) -> None:
    enter_it = f"nsenter -t {init_pid} -m -n -p -r -w"  # root and directory: of a chroot
    certificates = cache_directory() / "demo" / RUN_PRIVATE / "ssl"
    tool = f"{enter_it} {dev()} vm-control --cert-directory {certificates}"
    if "SMALLSTACK_CACHE" in os.environ:
        tool = tool.replace(f"{dev()} ", f"env SMALLSTACK_CACHE={cache_directory()} {dev()} ")
    print("\nThe demo is left running. Try next, in any shell:")
    print(f"  {tool} list-vms")
    print(f"  {tool} connect-to-vm-serial-port {address}")
    print(
        f"  {tool} create-vm --hostname second --image-name appliance --memory 128M "
        "--milli-cpus 10 --min-free-bytes 16M"
    )
    print(f"End it with:\n  {dev()} down")


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process started: field 22 of proc(5)'s stat."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _wait_gone(pidfd: int) -> None:
    import select

    with contextlib.closing(os.fdopen(pidfd)):
        select.select([pidfd], [], [])
