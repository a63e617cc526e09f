"""Machines outlive their agent: let go or left by a kill, they are found by their directory."""

import asyncio
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from smallstack.machine.agent_port import Word
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine, find
from tests.machine.conftest import (
    LEFT,
    REAL_QEMU,
    Launch,
    MakeSpec,
    console_says,
    left_in,
    open_descriptors,
)

pytestmark = REAL_QEMU


def reap(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED)


def kill_without_reaping(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


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


async def test_a_guest_that_missed_a_short_absence_is_known_to_be_ready(
    make_spec: MakeSpec, boot: Launch
) -> None:
    machine = await boot(make_spec("obey"))
    await console_says(machine, b"ready\n")
    await machine.ping()
    for _ in range(5):
        # The guest stands still while its port is closed and opened again.
        os.kill(machine.pid, signal.SIGSTOP)
        await machine.release()
        found = await find(machine.directory)
        assert found is not None
        assert found.timeline.phases == []
        os.kill(machine.pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            await found._first_of(found._event(Word.PONG))
        assert "guest ready" in {phase.name for phase in found.timeline.phases}
        machine = found
    assert await machine.stop() is ExitReason.GUEST_SHUTDOWN


AGENT = """
    import asyncio, dataclasses, pickle, sys
    from smallstack.machine.process import launch

    async def main():
        machine = await launch(pickle.load(sys.stdin.buffer))
        if "ready" in sys.argv:
            await machine.ping()  # answered by a guest that has said it is ready
        print(machine.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["ready", "at once"])
@pytest.mark.parametrize("deed", ["obey", "reboot"])
async def test_an_agent_that_is_killed_leaves_its_machines_running(
    make_spec: MakeSpec, ends: Callable[[int], None], moment: str, deed: str
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
    ends(pid)
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
