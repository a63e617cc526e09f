"""A QEMU that is missing, refuses, dies or hangs at its start: one clear error, nothing left."""

import asyncio
import os
from pathlib import Path

import pytest

from smallstack.machine.errors import (
    QemuMissingError,
    SpawnError,
    SpecError,
    StartError,
    StartTimeoutError,
)
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import launch
from tests.machine.conftest import (
    LEFT,
    REAL_QEMU,
    Launch,
    MakeSpec,
    is_gone,
    left_in,
    open_descriptors,
)

pytestmark = REAL_QEMU


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


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
