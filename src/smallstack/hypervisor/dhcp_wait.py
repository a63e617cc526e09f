"""Waiting for a guest's DHCP: for the ACK, for the time limit, or for the guest's early end."""

import asyncio

from smallstack.hypervisor.errors import CrashedError
from smallstack.hypervisor.vm import Vm
from smallstack.machine.console import read_log
from smallstack.machine.start import CONSOLE
from smallstack.network.dhcp.server import DhcpServer
from smallstack.proto.enums import State

_WORDS = 300


class DhcpWait:
    """Begins with being made, before the machine is launched: no ACK is missed."""

    def __init__(self, dhcp: DhcpServer, vm: Vm) -> None:
        self._vm = vm
        self._acknowledged = dhcp.acknowledged(vm.ip)
        self._acknowledged.add_done_callback(self._mark)

    def close(self) -> None:
        """Wait no longer."""
        self._acknowledged.cancel()

    async def wait(self, timeout_ns: int) -> bool:
        """Wait for at most so long, 0 or less: not at all; whether the time was not enough.

        A guest that shuts down before counts as one that did not ask. Raises CrashedError.
        """
        if timeout_ns <= 0:
            return False
        vm = self._vm
        ended = asyncio.ensure_future(vm.until(lambda: not _may_come(vm.state)))
        try:
            with vm.timeline.phase("dhcp"):
                await asyncio.wait(
                    (self._acknowledged, ended),
                    timeout=timeout_ns / 1e9,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if self._acknowledged.done() and not self._acknowledged.cancelled():
                return False
            if ended.done() and vm.state in (State.CRASHED, State.FAILED_TO_START):
                words = await asyncio.to_thread(last_words, vm)
                raise CrashedError(ip=vm.ip, words=words or "nothing")
            if not ended.done() and self._acknowledged.cancelled():
                # The lease went first: the machine has ended, its state follows.
                await asyncio.wait((ended,))
                return await self.wait(timeout_ns)
        finally:
            ended.cancel()
        return True

    def _mark(self, acknowledged: "asyncio.Future[None]") -> None:
        if not acknowledged.cancelled():
            self._vm.timeline.mark("dhcp ack")


def _may_come(state: State) -> bool:
    return state in (State.STARTING, State.RUNNING)


def last_words(vm: Vm) -> str:
    """The last line on a VM's console that has any letters. Blocks."""
    text = read_log(vm.directory.path / CONSOLE)
    lines = (text.head + text.tail).decode(errors="replace").splitlines()
    spoken = [line.strip() for line in lines if any(char.isalpha() for char in line)]
    panic = [line for line in spoken if "panic" in line.lower()]
    words = (panic or spoken or [""])[-1]
    return "".join(char for char in words if char.isprintable())[:_WORDS]
