"""One VM's task: what callers ask for, what the machine does, what disk says."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.hypervisor import vm as vm_module
from smallstack.hypervisor.errors import DiskError, NoAccessError, NoVmError, StateError
from smallstack.hypervisor.store import VmDirectory
from smallstack.hypervisor.vm import Vm
from smallstack.identity.peer import Peer
from smallstack.machine.errors import StartError
from smallstack.machine.lifecycle import ExitReason
from smallstack.proto.enums import State
from tests.hypervisor.fakes import IP, FakeMachine, FakeRuntime, make_vm


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@asynccontextmanager
async def running(vm: Vm) -> AsyncIterator[Vm]:
    """The VM with its task."""
    task = vm.begin()
    try:
        yield vm
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert not vm._children


def on_disk(vm: Vm) -> State:
    return vm.directory.read().vm_info.state


async def is_in(vm: Vm, state: State) -> None:
    """Wait for a state, and for its record."""
    await vm.until(lambda: vm.state is state and on_disk(vm) is state)


async def test_start_stop_start_destroy(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        assert vm.state is State.RUNNING
        await vm.stop()
        assert (vm.state, on_disk(vm)) == (State.STOPPED, State.STOPPED)
        await vm.start()
        await vm.destroy()
        assert vm.gone
        with pytest.raises(NoVmError, match=f"no VM with IP address: {IP} found"):
            await vm.stop()
    assert runtime.states == [
        State.STARTING,
        State.RUNNING,
        State.STOPPING,
        State.STOPPED,
        State.STARTING,
        State.RUNNING,
        State.DESTROYING,
    ]
    assert runtime.done == [
        "launch",
        "ended guest-shutdown",
        "launch",
        "ended quit",
        "delete",
    ]


async def test_the_state_is_on_disk_before_the_launch(tmp_path: Path, runtime: FakeRuntime) -> None:
    runtime.hold_launch = asyncio.Event()
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        starting = asyncio.create_task(vm.start())
        await runtime.until(lambda: "launch" in runtime.done)
        assert on_disk(vm) is State.STARTING
        with pytest.raises(StateError, match="VM is already starting"):
            await vm.start()
        with pytest.raises(StateError, match="VM is starting"):
            await vm.destroy()
        runtime.hold_launch.set()
        await starting


async def test_reads_do_not_wait(tmp_path: Path, runtime: FakeRuntime) -> None:
    runtime.hold_launch = asyncio.Event()
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        starting = asyncio.create_task(vm.start())
        await runtime.until(lambda: "launch" in runtime.done)
        assert vm.info.state is State.STARTING
        starting.cancel()


async def test_a_guest_that_does_not_obey_keeps_nobody_waiting(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    """While a stop is under way other requests are refused at once."""
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        runtime.machine.obeys = False
        stopping = asyncio.create_task(vm.stop())
        await vm.until(lambda: vm.state is State.STOPPING)
        for request in (vm.start, vm.stop, vm.reboot, vm.destroy):
            with pytest.raises(StateError, match="VM is stopping"):
                await request()
        runtime.machine.end(ExitReason.QUIT)
        await stopping
        assert vm.state is State.STOPPED


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (ExitReason.GUEST_SHUTDOWN, State.STOPPED),
        (ExitReason.CRASHED, State.CRASHED),
        (ExitReason.DIED, State.CRASHED),
        (ExitReason.QUIT, State.CRASHED),
    ],
)
async def test_ends(tmp_path: Path, runtime: FakeRuntime, reason: ExitReason, state: State) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        runtime.machine.end(reason)
        await is_in(vm, state)
        assert vm.machine is None
        assert runtime.done[-1] == f"ended {reason.value}"


@pytest.mark.parametrize("protected", [False, True])
async def test_destroy_on_powerdown(tmp_path: Path, runtime: FakeRuntime, protected: bool) -> None:
    vm = make_vm(
        tmp_path,
        runtime,
        State.STOPPED,
        destroy_on_powerdown=True,
        destroy_protection=protected,
    )
    async with running(vm):
        await vm.start()
        runtime.machine.end(ExitReason.GUEST_SHUTDOWN)
        await vm.until(lambda: vm.state is State.STOPPED)
        if not protected:
            await vm.until(lambda: vm.gone)
        assert vm.gone is not protected


async def test_destroy_on_powerdown_waits_for_the_create(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED, destroy_on_powerdown=True)
    vm.in_creation = True
    async with running(vm):
        await vm.start()
        runtime.machine.end(ExitReason.GUEST_SHUTDOWN)
        await is_in(vm, State.STOPPED)
        assert not vm.gone
        vm.end_creation()
        await vm.until(lambda: vm.gone)


async def test_protection(tmp_path: Path, runtime: FakeRuntime) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED, destroy_protection=True)
    async with running(vm):
        await vm.start()
        with pytest.raises(StateError, match="cannot destroy running VM when protected"):
            await vm.destroy()
        await vm.stop()
        await vm.destroy()
        assert vm.gone


async def test_reboot_of_a_machine_that_ends(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        await vm.reboot()
        await vm.until(lambda: len(runtime.machines) == 2 and vm.state is State.RUNNING)
        assert runtime.machines[0].asked == ["reboot"]


async def test_a_guest_that_reboots_for_ever_is_slowed_down(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_module, "RELAUNCH_INTERVAL", 3600.0)
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        runtime.machine.end(ExitReason.REBOOT)
        await is_in(vm, State.STARTING)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(runtime.machines) == 1


async def test_launch_fails(tmp_path: Path, runtime: FakeRuntime) -> None:
    runtime.launch_error = OSError(errno.ENOENT, "No such file or directory")
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        with pytest.raises(OSError, match="No such file"):
            await vm.start()
        await is_in(vm, State.FAILED_TO_START)
        runtime.launch_error = None
        await vm.start()


async def test_qemu_dies_at_its_start(tmp_path: Path, runtime: FakeRuntime) -> None:
    runtime.up = False
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        starting = asyncio.create_task(vm.start())
        await runtime.until(lambda: vm.machine is not None)
        runtime.machine.fail()
        with pytest.raises(StartError, match="QEMU ended at its start"):
            await starting
        await is_in(vm, State.FAILED_TO_START)
        await vm.stop()
        assert vm.state is State.STOPPED


@pytest.mark.parametrize("when", ["launching", "launched", "up"])
async def test_expire_at_any_time(tmp_path: Path, runtime: FakeRuntime, when: str) -> None:
    """A create's undo: whatever has begun is ended, then deleted."""
    if when == "launching":
        runtime.hold_launch = asyncio.Event()
    runtime.up = when == "up"
    vm = make_vm(tmp_path, runtime, State.STOPPED, destroy_protection=True)
    async with running(vm):
        starting = asyncio.create_task(vm.start())
        reached: dict[str, Callable[[], bool]] = {
            "launching": lambda: "launch" in runtime.done,
            "launched": lambda: vm.machine is not None,
            "up": lambda: vm.state is State.RUNNING,
        }
        await runtime.until(reached[when])
        await vm.expire()
        await vm.expire()
        assert vm.gone
        assert runtime.done[-1] == "delete"
        for machine in runtime.machines:
            assert machine.exit.result() is ExitReason.QUIT
        if when != "up":
            with pytest.raises((StateError, StartError)):
                await starting


async def test_unacknowledged(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        vm.directory.expect_acknowledgement()
        vm.expire_after(0)
        await vm.until(lambda: vm.gone)


async def test_acknowledged(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        vm.directory.expect_acknowledgement()
        vm.expire_after(0)
        await vm.acknowledge()
        await vm.acknowledge()
        assert vm.directory.is_acknowledged is True
        await asyncio.sleep(0)
        assert not vm.gone


async def test_acknowledged_too_late(tmp_path: Path, runtime: FakeRuntime) -> None:
    """Nobody is told that a VM stays which is already on its way out."""
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        vm.directory.expect_acknowledgement()
        await vm.start()
        runtime.hold_ended = asyncio.Event()
        vm.expire_after(0)
        await vm.until(lambda: vm.state is State.DESTROYING)
        with pytest.raises(StateError, match="VM is destroying"):
            await vm.acknowledge()
        assert not vm.directory.is_acknowledged
        runtime.hold_ended.set()
        await vm.until(lambda: vm.gone)


async def test_acknowledged_as_its_time_is_over(tmp_path: Path, runtime: FakeRuntime) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        vm._expire_now()
        with pytest.raises((StateError, NoVmError)):
            await vm.acknowledge()
        await vm.until(lambda: vm.gone)


@pytest.mark.parametrize(
    ("state", "found", "end", "done"),
    [
        (State.RUNNING, True, State.RUNNING, ["find"]),
        (State.RUNNING, False, State.RUNNING, ["find", "launch"]),
        (State.STARTING, True, State.RUNNING, ["find"]),
        (State.STARTING, False, State.RUNNING, ["find", "launch"]),
        (State.CRASHED, False, State.RUNNING, ["find", "launch"]),
        (State.FAILED_TO_START, False, State.RUNNING, ["find", "launch"]),
        (State.DEBUGGING, True, State.RUNNING, ["find"]),
        (State.STOPPING, True, State.STOPPED, ["find", "ended quit"]),
        (State.STOPPING, False, State.STOPPED, ["find"]),
        (State.STOPPED, False, State.STOPPED, []),
        (State.MIGRATING, False, State.MIGRATING, []),
        (State.EXPORTING, False, State.EXPORTING, []),
    ],
)
async def test_what_a_start_finds(
    tmp_path: Path, runtime: FakeRuntime, state: State, found: bool, end: State, done: list[str]
) -> None:
    runtime.found = FakeMachine() if found else None
    async with running(make_vm(tmp_path, runtime, state)) as vm:
        changed = vm.info.changed_state_on
        await vm.find()
        await runtime.until(lambda: runtime.done == done and vm.state is end)
        if found and state is State.RUNNING:
            assert vm.info.changed_state_on == changed
            assert vm.machine is not None


@pytest.mark.parametrize("found", [True, False])
async def test_a_start_finishes_what_was_being_destroyed(
    tmp_path: Path, runtime: FakeRuntime, found: bool
) -> None:
    runtime.found = FakeMachine() if found else None
    async with running(make_vm(tmp_path, runtime, State.DESTROYING)) as vm:
        await vm.find()
        await vm.until(lambda: vm.gone)
        assert runtime.done[-1] == "delete"


async def test_a_request_right_after_the_search_sees_its_outcome(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    """The machine of a running VM is known before any caller can stop it."""
    runtime.found = FakeMachine()
    async with running(make_vm(tmp_path, runtime, State.RUNNING)) as vm:
        await vm.find()
        await vm.stop()
        assert runtime.machine.asked == ["stop"]


async def test_no_second_machine_when_the_search_fails(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    runtime.find_error = OSError(errno.EACCES, "Permission denied")
    async with running(make_vm(tmp_path, runtime, State.RUNNING)) as vm:
        await vm.find()
        await is_in(vm, State.CRASHED)
        assert runtime.done == ["find"]


async def test_a_stop_while_the_network_is_taken_down(tmp_path: Path, runtime: FakeRuntime) -> None:
    """The machine has ended by itself: the next launch waits until nothing of it is left."""
    runtime.hold_ended = asyncio.Event()
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        runtime.machine.end(ExitReason.CRASHED)
        stopping = asyncio.create_task(vm.stop())
        await vm.until(lambda: vm.state is State.STOPPING)
        with pytest.raises(StateError, match="VM is stopping"):
            await vm.start()
        runtime.hold_ended.set()
        await stopping
        assert vm.state is State.STOPPED
        await vm.start()
        assert runtime.done == ["launch", "ended crashed", "launch"]


async def test_the_end_of_the_agent_is_not_the_end_of_the_machine(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        await vm.start()
        await is_in(vm, State.RUNNING)
    assert runtime.machine.asked == ["release"]
    assert not runtime.machine.exit.done()
    assert on_disk(vm) is State.RUNNING


class FullDisk(VmDirectory):
    """A directory on a disk without space."""

    def write(self, record: bytes, *, sync: bool = True) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


async def test_a_full_disk_refuses_a_start_and_nothing_else(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED)
    vm.directory = FullDisk(vm.directory.path)
    async with running(vm):
        with pytest.raises(DiskError, match="No space left on device"):
            await vm.start()
        assert vm.state is State.STOPPED
        assert runtime.done == []
        vm.directory = VmDirectory(vm.directory.path)
        await vm.start()
        vm.directory = FullDisk(vm.directory.path)
        await vm.stop()
        await vm.destroy()
        assert vm.gone


async def test_a_deletion_that_fails_may_be_repeated(tmp_path: Path, runtime: FakeRuntime) -> None:
    runtime.delete_error = OSError(errno.EIO, "Input/output error")
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        with pytest.raises(DiskError, match="Input/output error"):
            await vm.destroy()
        assert not vm.gone
        assert on_disk(vm) is State.DESTROYING  # a restart would go on with it
        runtime.delete_error = None
        await vm.destroy()
        assert vm.gone


async def test_an_earlier_failure_is_not_the_next_ones(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    """Destroying a running VM takes a moment: the outcome is that of this attempt."""
    runtime.delete_error = OSError(errno.EIO, "Input/output error")
    async with running(make_vm(tmp_path, runtime, State.STOPPED)) as vm:
        with pytest.raises(DiskError, match="Input/output error"):
            await vm.destroy()
        runtime.delete_error = None
        await vm.start()
        await vm.destroy()
        assert vm.gone


async def test_whoever_waits_is_told_that_it_is_gone(tmp_path: Path, runtime: FakeRuntime) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED)
    async with running(vm):
        first = asyncio.create_task(vm.destroy())
        late = [asyncio.create_task(vm.start()) for _ in range(3)]
        await first
        results = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(r, (NoVmError, StateError)) for r in results)


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Peer(username="owner"), True),
        (Peer(username="second"), True),
        (Peer(username="eve"), False),
        (Peer(username="eve", groups=frozenset({"crew"})), True),
        (Peer(username="eve", have_method_access=True), True),
        (Peer(), False),
    ],
)
def test_access(tmp_path: Path, runtime: FakeRuntime, peer: Peer, allowed: bool) -> None:
    async def check() -> None:
        vm = make_vm(
            tmp_path,
            runtime,
            State.STOPPED,
            owner_users=["owner", "second", ""],
            owner_groups=["crew"],
        )
        if allowed:
            vm.check_access(peer)
            return
        with pytest.raises(NoAccessError, match=r"^no access to resource: neither"):
            vm.check_access(peer)
        vm.access_token = b"t" * 32
        vm.check_access(peer, b"t" * 32)
        vm.access_token = b"short"
        with pytest.raises(NoAccessError):
            vm.check_access(peer, b"short")

    asyncio.run(check())


async def test_user_data_is_replaced_at_once_or_not_at_all(
    tmp_path: Path, runtime: FakeRuntime
) -> None:
    vm = make_vm(tmp_path, runtime, State.STOPPED)
    old, new = (vm.user_data.with_name(vm.user_data.name + suffix) for suffix in (".old", ".new"))

    async def store(path: Path) -> None:
        path.write_bytes(b"next")

    async def break_off(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError

    await vm.replace_user_data(store)
    assert vm.user_data.read_bytes() == b"next"
    assert not old.exists()
    with pytest.raises(ConnectionError):
        await vm.replace_user_data(break_off)
    assert vm.user_data.read_bytes() == b"next"
    await vm.replace_user_data(store)
    assert old.read_bytes() == b"next"
    assert not new.exists()
