"""Changing a VM's record between events, and having the VM for oneself."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import BlockedError, DiskError, NoVmError, StateError
from smallstack.hypervisor.vm import Vm
from smallstack.machine.lifecycle import ExitReason
from smallstack.proto.enums import State
from smallstack.proto.vm import LocalVmInfo
from tests.hypervisor.fakes import FakeRuntime, make_vm
from tests.hypervisor.test_vm import running


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def tag(record: LocalVmInfo) -> None:
    record.vm_info.tags = {**record.vm_info.tags, str(len(record.vm_info.tags)): ""}


async def test_changes_come_one_after_another(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        read = vm.info
        await asyncio.gather(*(vm.change(tag) for _ in range(20)))
        assert len(vm.info.tags) == 20
        assert vm.directory.read().vm_info == vm.info
        assert read.tags == {}, "who has read it keeps what was read"


async def test_nothing_starts_a_vm_while_it_is_changed(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        go_on = asyncio.Event()
        changing = asyncio.create_task(vm.apply(go_on.wait, stopped=True))
        starting = asyncio.create_task(vm.start())
        with pytest.raises(StateError, match="VM is not stopped"):
            late = asyncio.create_task(vm.change(tag, stopped=True))
            go_on.set()
            await late
        await changing
        await starting
        assert vm.state is State.RUNNING
        await vm.change(tag)


async def test_a_record_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.change(tag)
        before = vm.record

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(vm.directory, "write", full)
        with pytest.raises(DiskError):
            await vm.change(tag)
        assert vm.record is before


async def held(vm: Vm, release: asyncio.Event) -> None:
    async with vm.hold():
        await release.wait()


async def test_who_holds_it_changes_it_and_nobody_else(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        async with vm.hold(stopped=True):
            await vm.change(tag, stopped=True, holding=True)
            for refused in (vm.start, vm.stop, vm.reboot, vm.destroy):
                with pytest.raises(BlockedError):
                    await refused()
            with pytest.raises(BlockedError):
                await vm.change(tag)
            with pytest.raises(BlockedError):
                await held(vm, asyncio.Event())
            await vm.acknowledge()
        assert not vm.blocked
        await vm.start()
        with pytest.raises(StateError, match="VM is not stopped"):
            async with vm.hold(stopped=True):
                raise AssertionError("a running VM was taken for a stopped one")


async def test_who_gives_up_waiting_for_it_holds_nothing(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    """A call is cancelled, as at the agent's end, while the VM's task has something else to do."""
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        go_on, begun = asyncio.Event(), asyncio.Event()

        async def busy() -> None:
            begun.set()
            await go_on.wait()

        working = asyncio.create_task(vm.apply(busy))
        await begun.wait()
        taking = asyncio.create_task(held(vm, asyncio.Event()))
        asyncio.get_running_loop().call_soon(taking.cancel)
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await taking
        await working
        await vm.change(tag)
        assert not vm.blocked


async def test_what_nobody_waits_for_any_more_is_not_done(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        go_on, done = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            done.set()

        busy = asyncio.create_task(vm.apply(go_on.wait))
        late = asyncio.create_task(vm.apply(work))
        asyncio.get_running_loop().call_soon(late.cancel)
        await asyncio.wait([late])
        go_on.set()
        await busy
        await vm.change(tag)
        assert not done.is_set()


async def test_who_is_cancelled_finds_the_record_as_it_is_on_disk(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or files would be removed that the record is about to name."""
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        loop, write = asyncio.get_running_loop(), vm.directory.write

        def cancelling(record: bytes, *, sync: bool) -> None:
            loop.call_soon_threadsafe(changing.cancel)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
            write(record, sync=sync)

        monkeypatch.setattr(vm.directory, "write", cancelling)
        changing = asyncio.create_task(vm.change(tag))
        with pytest.raises(asyncio.CancelledError):
            await changing
        assert vm.info.tags == vm.directory.read().vm_info.tags == {"0": ""}


async def test_whoever_outlasts_a_change_does_not_outlast_the_task(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED)
    task, begun = vm.begin(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    working = asyncio.create_task(vm.apply(endless))
    await begun.wait()
    task.cancel()
    with pytest.raises(NoVmError):
        await working
    with pytest.raises(NoVmError):
        await vm.change(tag)


async def test_an_end_that_is_due_comes_afterwards(tmp_path: Path, runtime: FakeRuntime) -> None:
    """Of a VM that nobody acknowledged, and of one that goes with its guest."""
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        async with vm.hold():
            expiring = asyncio.create_task(vm.expire())
            await vm.change(tag, holding=True)
            assert "delete" not in runtime.done
        await expiring
        assert vm.gone
        with pytest.raises(NoVmError):
            await vm.change(tag)
    vm = make_vm(tmp_path, runtime, State.STOPPED, destroy_on_powerdown=True)
    runtime.done.clear()
    async with running(vm):
        await vm.start()
        async with vm.hold():
            runtime.machine.end(ExitReason.GUEST_SHUTDOWN)
            await vm.until(lambda: vm.state is State.STOPPED)
            await vm.change(tag, holding=True)
            assert "delete" not in runtime.done
        await vm.until(lambda: False)
        assert vm.gone


async def test_a_token_ends_with_its_time(tmp_path: Path, runtime: FakeRuntime) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED)
    vm.grant_token(b"x" * 32, 0)
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(0, over.set)
    await over.wait()
    assert not vm.access_token
    vm.grant_token(b"y" * 32, 1000)
    vm.discard_token()
    assert not vm.access_token
