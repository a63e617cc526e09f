"""Real QEMU processes with a guest that does one thing."""

import asyncio
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smallstack.machine import process
from smallstack.machine.errors import (
    ConsoleBusyError,
    DisobedientGuestError,
    MonitorError,
    NotRunningError,
    QemuMissingError,
    SpawnError,
    SpecError,
    StartError,
    StartTimeoutError,
)
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine, find, launch
from smallstack.machine.spec import DiskSpec, NicSpec
from smallstack.telemetry.timeline import Timeline
from tests.machine.conftest import NOBODY, Launch, MakeSpec, console_says

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: QEMU gets another user"),
]

LEFT = {"console", "qemu.log"}
"""What a machine that has ended leaves in its directory."""


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def is_gone(machine: Machine) -> bool:
    return not Path(f"/proc/{machine.pid}").exists()


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def reap(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED)


def kill_without_reaping(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


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


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# --- start and ends -------------------------------------------------------------------------


async def test_launch_returns_at_exec_and_the_guest_is_heard_from_its_first_byte(
    make_spec: MakeSpec, boot: Launch
) -> None:
    machine = await boot(make_spec("obey"))
    assert [phase.name for phase in machine.timeline.phases] == ["spawn"]
    await machine.started()
    said = await console_says(machine, b"ready\n")
    assert said.startswith(b"up do=obey console=ttyS0 quiet")
    assert machine.reason is None
    assert repr(machine) == f"<Machine {machine.name} pid {machine.pid} running>"
    names = [phase.name for phase in machine.timeline.phases]
    assert sorted(names) == ["guest ready", "monitor", "spawn"]


async def test_the_callers_timeline_is_filled(make_spec: MakeSpec) -> None:
    timeline = Timeline()
    machine = await launch(make_spec("obey"), timeline)
    assert timeline.phases[0].name == "spawn"
    await machine.started()
    assert "monitor" in {phase.name for phase in timeline.phases}
    assert await machine.quit() is ExitReason.QUIT


@pytest.mark.parametrize(
    ("machine_type", "deed"), [("microvm", "reset"), ("microvm", "panic"), ("q35", "panic")]
)
async def test_a_panic_is_a_crash(
    make_spec: MakeSpec, boot: Launch, machine_type: str, deed: str
) -> None:
    machine = await boot(make_spec(deed, machine_type=machine_type, memory_mib=64))
    await machine.started()
    async with machine.console.attach() as session:
        await session.write(b"now")
    assert await machine.wait() is ExitReason.CRASHED
    assert await machine.wait() is ExitReason.CRASHED, "any number of times"
    assert is_gone(machine)
    assert left_in(machine.directory) == LEFT
    assert machine.error is None


async def test_stop_on_microvm_is_a_word_on_the_port(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    # At once: it waits for a QEMU and a guest that are still starting.
    assert await machine.stop() is ExitReason.GUEST_SHUTDOWN
    assert is_gone(machine)
    assert left_in(machine.directory) == LEFT
    log = (machine.directory / "console" / "0000000000000000.log").read_bytes()
    assert log.endswith(b"ready\nstopping\n")
    assert await machine.stop() is ExitReason.GUEST_SHUTDOWN, "stopped already"


async def test_stop_on_q35_is_the_power_button(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("acpi", machine_type="q35", memory_mib=64))
    await console_says(machine, b"ready\n")
    assert await machine.stop() is ExitReason.GUEST_SHUTDOWN
    log = (machine.directory / "console" / "0000000000000000.log").read_bytes()
    assert log.endswith(b"power button\n")


@pytest.mark.parametrize(
    ("machine_type", "deed"), [("microvm", "stubborn"), ("microvm", "halt"), ("q35", "halt")]
)
async def test_a_guest_that_does_not_obey_is_quit(
    make_spec: MakeSpec, boot: Launch, machine_type: str, deed: str
) -> None:
    machine = await boot(make_spec(deed, machine_type=machine_type, memory_mib=64))
    await console_says(machine, b"up ")
    start = time.monotonic()
    assert await machine.stop(timeout=0.3) is ExitReason.QUIT
    assert time.monotonic() - start >= 0.3
    assert is_gone(machine)
    assert left_in(machine.directory) == LEFT


async def test_the_timer_dies_with_its_stop(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("stubborn"))
    await console_says(machine, b"ready\n")
    stopping = asyncio.create_task(machine.stop(timeout=0.2))
    await console_says(machine, b"no\n")
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(machine.wait(), 0.6)
    await machine.ping()


async def test_reboot_on_microvm_ends_and_may_be_launched_again(
    make_spec: MakeSpec, boot: Launch
) -> None:
    spec = make_spec("obey")
    machine = await boot(spec)
    await machine.reboot()
    assert machine.reason is ExitReason.REBOOT
    assert is_gone(machine)
    again = await boot(spec)
    await console_says(again, b"ready\n")
    assert again.pid != machine.pid
    assert await again.stop() is ExitReason.GUEST_SHUTDOWN
    old = spec.directory / "console.old" / "0000000000000000.log"
    assert old.read_bytes().endswith(b"rebooting\n")


async def test_reboot_on_q35_stays_in_the_process(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("acpi", machine_type="q35", memory_mib=64))
    await console_says(machine, b"ready\n")
    await machine.reboot()
    await console_says(machine, b"ctrl-alt-delete\nup do=acpi\nready\n")
    assert machine.reason is None
    assert await machine.stop() is ExitReason.GUEST_SHUTDOWN


@pytest.mark.parametrize(("machine_type", "deed"), [("microvm", "stubborn"), ("q35", "halt")])
async def test_a_guest_that_does_not_reboot_runs_on(
    make_spec: MakeSpec, boot: Launch, machine_type: str, deed: str
) -> None:
    machine = await boot(make_spec(deed, machine_type=machine_type, memory_mib=64))
    await console_says(machine, b"up ")
    with pytest.raises(DisobedientGuestError, match=r"did not reboot within 0.3 s"):
        await machine.reboot(timeout=0.3)
    assert machine.reason is None


async def test_a_stop_during_a_reboot_is_no_reboot(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("stubborn"))
    await console_says(machine, b"ready\n")
    rebooting = asyncio.create_task(machine.reboot())
    await console_says(machine, b"no\n")
    assert await machine.quit() is ExitReason.QUIT
    with pytest.raises(NotRunningError, match="is not running: it ended with quit"):
        await rebooting
    for late in (machine.reboot(), machine.ping()):
        with pytest.raises(NotRunningError):
            await late


async def test_ping(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    for _ in range(3):
        await machine.ping()
    silent = await boot(make_spec("halt"))
    with pytest.raises(DisobedientGuestError, match=r"did not answer within 0.2 s"):
        await silent.ping(timeout=0.2)


async def test_a_guest_that_babbles_is_heard_and_no_more(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("babble"))
    await console_says(machine, b"ready\n")
    assert await machine.stop(timeout=0.2) is ExitReason.QUIT


async def test_quit_while_qemu_is_still_starting(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    assert await machine.quit() is ExitReason.QUIT
    assert await machine.quit() is ExitReason.QUIT


async def test_a_qemu_that_hangs_is_killed_by_quit(
    make_spec: MakeSpec, boot: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "QUIT_LIMIT", 0.2)
    machine = await boot(make_spec("obey"))
    await console_says(machine, b"ready\n")
    os.kill(machine.pid, signal.SIGSTOP)
    assert await machine.quit() is ExitReason.QUIT
    assert is_gone(machine)


async def test_a_qemu_that_hangs_at_its_exit_is_killed(
    make_spec: MakeSpec, boot: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EXIT_LIMIT", 0.2)
    machine = await boot(make_spec("obey"))
    await console_says(machine, b"ready\n")
    await machine.started()
    os.kill(machine.pid, signal.SIGSTOP)
    machine._on_event("SHUTDOWN", {"guest": True, "reason": "guest-reset"})
    assert await machine.wait() is ExitReason.CRASHED
    assert is_gone(machine)


async def test_a_qemu_that_is_killed_has_died(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    await machine.started()
    os.kill(machine.pid, signal.SIGKILL)
    assert await machine.wait() is ExitReason.DIED
    assert "by signal SIGKILL" in str(machine.error)
    assert left_in(machine.directory) == LEFT


async def test_a_qemu_that_aborts_has_died_too(make_spec: MakeSpec, boot: Launch) -> None:
    # Not SIGTERM: QEMU 7.2 then cleans its monitor up, where it hangs now and then.
    machine = await boot(make_spec("obey"))
    await machine.started()
    os.kill(machine.pid, signal.SIGABRT)
    assert await machine.wait() is ExitReason.DIED
    assert "SIGABRT" in str(machine.error)


async def test_the_monitor_refuses(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    with pytest.raises(MonitorError, match="refused no-such-command"):
        await machine._monitor.execute("no-such-command")


# --- a QEMU that is missing, dies, hangs ----------------------------------------------------


def script(directory: Path, text: str) -> str:
    path = directory / "qemu"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


async def test_qemu_missing(make_spec: MakeSpec) -> None:
    before = open_descriptors()
    spec = make_spec(qemu="qemu-system-none")
    with pytest.raises(QemuMissingError, match="qemu-system-none was not found: install"):
        await launch(spec)
    assert left_in(spec.directory) == set()
    assert open_descriptors() == before


async def test_qemu_that_its_user_may_not_execute(make_spec: MakeSpec, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    spec = make_spec(qemu=script(tmp_path, "exit 0\n"))
    before = open_descriptors()
    with pytest.raises(SpawnError, match="could not be executed: Permission denied"):
        await launch(spec)
    assert left_in(spec.directory) == {"qemu.log"}
    assert open_descriptors() == before


async def test_a_kernel_that_is_missing(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(kernel=tmp_path / "none")
    before = open_descriptors()
    with pytest.raises(SpawnError, match=r"No such file or directory: .*/none"):
        await launch(spec)
    assert open_descriptors() == before
    assert not {"pidfile", "machine.json"} & left_in(spec.directory)


async def test_a_directory_that_is_missing(make_spec: MakeSpec) -> None:
    spec = make_spec()
    spec.directory.rmdir()
    with pytest.raises(SpawnError, match="No such file or directory"):
        await launch(spec)


async def test_root_is_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="may not run as root"):
        await launch(make_spec(uid=None, gid=None))


async def test_qemu_that_dies_at_its_start(
    make_spec: MakeSpec, boot: Launch, open_directory: Path
) -> None:
    qemu = script(open_directory, "echo one >&2; echo 'cannot do that' >&2; exit 3\n")
    machine = await boot(make_spec(qemu=qemu))
    assert await machine.wait() is ExitReason.FAILED
    with pytest.raises(StartError) as raised:
        await machine.started()
    assert str(raised.value) == (
        f"machine {machine.name}: QEMU ended at its start (status 3): one | cannot do that"
    )
    assert left_in(machine.directory) == LEFT


async def test_qemu_that_refuses_its_arguments(
    make_spec: MakeSpec, boot: Launch, tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"not a kernel")
    junk.chmod(0o644)
    machine = await boot(make_spec(kernel=junk))
    assert await machine.wait() is ExitReason.FAILED
    assert "(status 1)" in str(machine.error)
    assert "invalid kernel header" in str(machine.error)


async def test_qemu_that_hangs_at_its_start(make_spec: MakeSpec, open_directory: Path) -> None:
    qemu = script(open_directory, "echo thinking >&2; exec sleep 1000\n")
    machine = await launch(make_spec(qemu=qemu), start_limit=0.3)
    assert await machine.wait() is ExitReason.FAILED
    with pytest.raises(StartTimeoutError, match=r"within 0.3 s and was killed: thinking"):
        await machine.started()
    assert is_gone(machine)
    assert left_in(machine.directory) == LEFT


async def test_a_launch_that_is_cancelled_leaves_nothing(make_spec: MakeSpec) -> None:
    for turns in range(4):
        spec = make_spec("obey")
        before = open_descriptors()
        task = asyncio.create_task(launch(spec))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not {"pidfile", "machine.json"} & left_in(spec.directory)
        assert open_descriptors() == before
    assert no_children()


# --- what the process is --------------------------------------------------------------------


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


# --- the console ----------------------------------------------------------------------------


async def test_the_console_is_one_clients_and_raw_both_ways(
    make_spec: MakeSpec, boot: Launch
) -> None:
    machine = await boot(make_spec("echo"))
    await console_says(machine, b"ready\n")
    everything = bytes(range(256))
    async with machine.console.attach() as session:
        with pytest.raises(ConsoleBusyError):
            machine.console.attach()
        await session.write(everything)
        got = b""
        while len(got) < len(everything):
            got += await session.read()
        assert got == everything
        assert await machine.quit() is ExitReason.QUIT
        assert await session.read() == b""
    assert everything in (machine.directory / "console" / "0000000000000000.log").read_bytes()


async def test_a_flood_is_logged_within_bounds(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("flood"))
    await console_says(machine, b"end of flood\n")
    directory = machine.directory / "console"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= (64 + 512) * 1024
    head = (directory / "0000000000000000.log").read_bytes()
    assert b"\n0000999 the quick" in head
    assert machine.console.log.total > 630_000


# --- found again ----------------------------------------------------------------------------


async def test_let_go_and_found_again(make_spec: MakeSpec, boot: Launch) -> None:
    spec = make_spec("obey")
    before = open_descriptors()
    machine = await boot(spec)
    await console_says(machine, b"ready\n")
    await machine.release()
    assert open_descriptors() == before
    found = await find(spec.directory)
    assert found is not None
    assert found.pid == machine.pid
    assert found.machine_type == "microvm"
    await found.started()
    await found.ping()
    assert await found.stop() is ExitReason.GUEST_SHUTDOWN
    assert left_in(spec.directory) == LEFT
    assert await find(spec.directory) is None
    assert open_descriptors() == before


AGENT = """
    import asyncio, dataclasses, pickle, sys
    from smallstack.machine.process import launch

    async def main():
        machine = await launch(pickle.load(sys.stdin.buffer))
        if "ready" in sys.argv:
            while not any(phase.name == "guest ready" for phase in machine.timeline.phases):
                await asyncio.sleep(0.005)
        print(machine.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["ready", "at once"])
@pytest.mark.parametrize("deed", ["obey", "reboot"])
async def test_an_agent_that_is_killed_leaves_its_machines_running(
    make_spec: MakeSpec, moment: str, deed: str
) -> None:
    # Killed at once, before QEMU has taken its first connection: the guest must not speak into it.
    spec = make_spec("obey" if moment == "ready" else "late")
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(AGENT),
        moment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(pickle.dumps(spec))
    agent.stdin.write_eof()
    pid = int(await agent.stdout.readline())
    agent.kill()
    await agent.wait()
    machine = await find(spec.directory)
    assert machine is not None
    assert machine.pid == pid
    if moment != "ready":
        async with machine.console.attach() as session:
            await session.write(b"now")
    await machine.ping()
    if deed == "obey":
        assert await machine.stop() is ExitReason.GUEST_SHUTDOWN
    else:
        await machine.reboot()
        assert machine.reason is ExitReason.REBOOT
    assert await find(spec.directory) is None


async def test_output_of_before_and_after_a_restart_is_in_one_log(
    make_spec: MakeSpec, boot: Launch
) -> None:
    machine = await boot(make_spec("echo"))
    await console_says(machine, b"ready\n")
    await machine.release()
    found = await find(machine.directory)
    assert found is not None
    async with found.console.attach() as session:
        await session.write(b"after the restart")
        await console_says_attached(found, b"after the restart")
    log = (machine.directory / "console" / "0000000000000000.log").read_bytes()
    assert log.startswith(b"up do=echo")
    assert log.endswith(b"ready\nafter the restart")
    assert await found.quit() is ExitReason.QUIT


async def console_says_attached(machine: Machine, text: bytes) -> None:
    session = machine.console._session
    assert session is not None
    got = b""
    while text not in got:
        got += await session.read()


async def test_a_pid_of_another_process_is_never_taken(make_spec: MakeSpec, boot: Launch) -> None:
    spec = make_spec("obey")
    machine = await boot(spec)
    await machine.started()
    await machine.release()
    pid, start_time = (spec.directory / "pidfile").read_text().split()
    record = (spec.directory / "machine.json").read_text()
    try:
        # This process has that pid, and started at another time.
        (spec.directory / "pidfile").write_text(f"{os.getpid()} {start_time}\n")
        assert await find(spec.directory) is None
        assert left_in(spec.directory) == LEFT
        # Its own, but of another boot.
        (spec.directory / "pidfile").write_text(f"{pid} {start_time}\n")
        (spec.directory / "machine.json").write_text(
            re.sub(r'boot_id": "\w', 'boot_id": "x', record)
        )
        assert await find(spec.directory) is None
        for junk in ("", "1", "x y\n", "-1 5\n", f"{pid} {int(start_time) + 1}\n"):
            (spec.directory / "machine.json").write_text(record)
            (spec.directory / "pidfile").write_text(junk)
            assert await find(spec.directory) is None
        assert Path(f"/proc/{pid}").exists()
    finally:
        reap(int(pid))


async def test_a_machine_that_ended_while_nobody_looked(make_spec: MakeSpec, boot: Launch) -> None:
    spec = make_spec("obey")
    machine = await boot(spec)
    await machine.started()
    await machine.release()
    kill_without_reaping(machine.pid)  # a zombie is no machine
    assert await find(spec.directory) is None
    reap(machine.pid)


async def test_nothing_to_find(tmp_path: Path) -> None:
    assert await find(tmp_path) is None
    assert await find(tmp_path / "missing") is None


async def test_twenty_at_once(make_spec: MakeSpec, boot: Launch) -> None:
    before = open_descriptors()
    machines = await asyncio.gather(*(boot(make_spec("obey")) for _ in range(20)))
    await asyncio.gather(*(machine.ping(timeout=60) for machine in machines))
    reasons = await asyncio.gather(*(machine.stop(timeout=60) for machine in machines))
    assert set(reasons) == {ExitReason.GUEST_SHUTDOWN}
    assert open_descriptors() == before
