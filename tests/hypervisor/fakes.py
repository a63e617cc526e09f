"""A machine without QEMU and a runtime without a network, for tests of what stands above them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

from smallstack.hypervisor.store import VmDirectory
from smallstack.hypervisor.vm import Vm
from smallstack.machine.errors import MachineError, StartError
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine
from smallstack.proto.enums import State
from smallstack.proto.vm import Address, LocalVmInfo, VmInfo

IP = "198.51.100.2"


class FakeMachine:
    """Ends when told to; ``obeys`` is what it makes of a stop."""

    def __init__(self, *, up: bool = True, obeys: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[ExitReason] = loop.create_future()
        self.is_up: asyncio.Future[None] = loop.create_future()
        self.error: MachineError | None = None
        self.asked: list[str] = []
        self.obeys = obeys
        if up:
            self.is_up.set_result(None)

    async def started(self) -> None:
        await asyncio.wait((self.is_up, self.exit), return_when=asyncio.FIRST_COMPLETED)
        if self.error is not None:
            raise self.error

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self.exit)

    async def stop(self, timeout: float = 15) -> ExitReason:
        self.asked.append("stop")
        if self.obeys:
            self.end(ExitReason.GUEST_SHUTDOWN)
        return await self.wait()

    async def reboot(self) -> None:
        self.asked.append("reboot")
        if self.obeys:
            self.end(ExitReason.REBOOT)
            await self.wait()

    async def quit(self) -> ExitReason:
        self.asked.append("quit")
        self.end(ExitReason.QUIT)
        return await self.wait()

    async def release(self) -> None:
        self.asked.append("release")

    def end(self, reason: ExitReason) -> None:
        if not self.exit.done():
            self.exit.set_result(reason)

    def fail(self) -> None:
        """QEMU ends at its start."""
        self.error = StartError(name=IP, status="status 1", detail="it said nothing")
        self.end(ExitReason.FAILED)


class FakeRuntime:
    """Counts what was done. ``found`` is what an earlier run left."""

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.done: list[str] = []
        self.states: list[State] = []
        self.found: FakeMachine | None = None
        self.launch_error: Exception | None = None
        self.find_error: Exception | None = None
        self.hold_ended: asyncio.Event | None = None
        self.delete_error: Exception | None = None
        self.hold_launch: asyncio.Event | None = None
        self.up = True
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; looked at whenever something was done or has changed."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    def note(self, what: str) -> None:
        self.done.append(what)
        self._news.set()

    async def launch(self, vm: Vm) -> Machine:
        self.note("launch")
        if self.hold_launch is not None:
            await self.hold_launch.wait()
        if self.launch_error is not None:
            raise self.launch_error
        machine = FakeMachine(up=self.up)
        self.machines.append(machine)
        return cast("Machine", machine)

    async def find(self, vm: Vm) -> Machine | None:
        self.note("find")
        if self.find_error is not None:
            raise self.find_error
        if self.found is not None:
            self.machines.append(self.found)
        return cast("Machine | None", self.found)

    async def ended(self, vm: Vm, reason: ExitReason) -> None:
        if self.hold_ended is not None:
            await self.hold_ended.wait()
        self.note(f"ended {reason.value}")

    async def delete(self, vm: Vm) -> None:
        self.note("delete")
        if self.delete_error is not None:
            raise self.delete_error

    def changed(self, vm: Vm) -> None:
        if not self.states or self.states[-1] is not vm.state:
            self.states.append(vm.state)
        self._news.set()

    @property
    def machine(self) -> FakeMachine:
        """The latest."""
        return self.machines[-1]


def make_vm(path: Path, runtime: FakeRuntime, state: State, **info: object) -> Vm:
    """A VM in a state, with a directory."""
    directory = VmDirectory(path / IP)
    directory.path.mkdir(exist_ok=True)
    address = Address(ip_address=IP, mac_address="52:54:c6:33:64:02")
    record = VmInfo(
        address=address,
        state=state,
        memory_in_mib=64,
        milli_cpus=10,
        **info,  # type: ignore[arg-type]
    )
    return Vm(LocalVmInfo(vm_info=record), directory, runtime)
