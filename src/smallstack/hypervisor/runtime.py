"""What a VM's task has done for it; `smallstack.hypervisor.agent` does it."""

from typing import TYPE_CHECKING, Protocol

from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine

if TYPE_CHECKING:
    from smallstack.hypervisor.vm import Vm


class Runtime(Protocol):
    """All VMs' surroundings."""

    async def launch(self, vm: "Vm") -> Machine:
        """Network and machine; when it raises, nothing of either is left."""

    async def find(self, vm: "Vm") -> Machine | None:
        """The machine an earlier run of the agent left, with its network entered again."""

    async def ended(self, vm: "Vm", reason: ExitReason) -> None:
        """The machine is gone: take the network down."""

    async def delete(self, vm: "Vm") -> None:
        """Everything on disk goes, then the addresses become free."""

    def changed(self, vm: "Vm") -> None:
        """The record has changed; called on the loop, returns at once."""
