"""A real QEMU whose guest does one thing: its start, what it is asked, each way it ends."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from smallstack.machine import process
from smallstack.machine.errors import (
    ConsoleBusyError,
    DisobedientGuestError,
    MonitorError,
    NotRunningError,
)
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import find, launch
from smallstack.telemetry.timeline import Timeline
from tests.machine.conftest import (
    LEFT,
    REAL_QEMU,
    Launch,
    MakeSpec,
    console_says,
    is_gone,
    left_in,
    open_descriptors,
)

pytestmark = REAL_QEMU


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


async def test_a_qemu_that_hangs_before_it_has_told_of_its_end_is_killed(
    make_spec: MakeSpec, boot: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EXIT_LIMIT", 0.2)
    machine = await boot(make_spec("obey"))
    await console_says(machine, b"ready\n")
    await machine.started()
    os.kill(machine.pid, signal.SIGSTOP)
    machine.doubt()
    machine.doubt()
    assert await machine.wait() is ExitReason.DIED
    assert "SIGKILL" in str(machine.error)
    assert is_gone(machine)
    machine.doubt()


async def test_a_qemu_that_answers_is_left_alone(
    make_spec: MakeSpec, boot: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EXIT_LIMIT", 5)
    machine = await boot(make_spec("obey"))
    await machine.started()
    machine.doubt()
    assert machine._doubt is not None
    await machine._doubt
    # No time is running any more.
    monkeypatch.setattr(process, "EXIT_LIMIT", 0)
    await machine.ping()
    assert machine.reason is None


async def test_the_doubt_goes_with_the_machine(make_spec: MakeSpec, boot: Launch) -> None:
    machine = await boot(make_spec("obey"))
    await console_says(machine, b"ready\n")
    os.kill(machine.pid, signal.SIGSTOP)
    machine.doubt()
    await machine.release()
    assert machine._doubt is None
    os.kill(machine.pid, signal.SIGCONT)
    found = await find(machine.directory)
    assert found is not None
    assert await found.quit() is ExitReason.QUIT


HANGS_UP = """#!/usr/bin/python3
import signal, socket

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for fd in range(3, 16):
    try:
        listener = socket.socket(fileno=fd)
        listener.getsockname()
    except OSError:
        continue
    if listener.getsockname().endswith("monitor.sock"):
        with listener.accept()[0] as session:
            session.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\\n')
            session.recv(4096)  # qmp_capabilities
            session.sendall(b'{"return": {}}\\n')
            if WAITS:
                signal.sigwait([signal.SIGUSR1])
    else:
        listener.detach()
signal.pause()
"""


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_monitor_that_hangs_up_is_a_sign_of_the_end(
    make_spec: MakeSpec,
    boot: Launch,
    monkeypatch: pytest.MonkeyPatch,
    open_directory: Path,
    at_once: bool,
) -> None:
    monkeypatch.setattr(process, "EXIT_LIMIT", 0.2)
    program = open_directory / "qemu"
    program.write_text(HANGS_UP.replace("WAITS", str(not at_once)))
    program.chmod(0o755)
    machine = await boot(make_spec(qemu=str(program)))
    if not at_once:
        await machine.started()
        os.kill(machine.pid, signal.SIGUSR1)
    # A session that ends as it begins may not have been one.
    assert await machine.wait() in {ExitReason.DIED, ExitReason.FAILED}
    assert machine.error is not None
    assert "SIGKILL" in str(machine.error)
    assert is_gone(machine)


async def test_let_go_at_once_it_leaves_no_descriptor(make_spec: MakeSpec, boot: Launch) -> None:
    before = open_descriptors()
    machine = await boot(make_spec("obey"))
    await machine.release()
    assert open_descriptors() == before
    found = await find(machine.directory)
    assert found is not None
    assert await found.quit() is ExitReason.QUIT


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


async def test_twenty_at_once(make_spec: MakeSpec, boot: Launch) -> None:
    before = open_descriptors()
    machines = await asyncio.gather(*(boot(make_spec("obey")) for _ in range(20)))
    await asyncio.gather(*(machine.ping(timeout=60) for machine in machines))
    reasons = await asyncio.gather(*(machine.stop(timeout=60) for machine in machines))
    assert set(reasons) == {ExitReason.GUEST_SHUTDOWN}
    assert open_descriptors() == before


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
