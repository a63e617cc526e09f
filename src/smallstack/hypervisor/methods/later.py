"""Methods that this agent knows and does not do: each refuses in its own form.

The rights are those of the method, and a VM has to be the caller's, so that nobody learns more by
a refusal than by the answer. What a client sends behind its request is read and thrown away: the
connection goes on.
"""

from collections.abc import Mapping
from typing import Any, Final

from smallstack.hypervisor.errors import NotSupportedError, RequestError
from smallstack.hypervisor.methods.base import Methods, answering
from smallstack.hypervisor.upload import Upload
from smallstack.identity.peer import without_powers
from smallstack.proto.methods import METHODS, Shape
from smallstack.srpc.server import Call, Handler

ELSEWHERE: Final = frozenset({"CopyVm", "ImportLocalVm", "MigrateVm"})
"""Their VM is not one of this agent's, or not yet."""
OWNERS_ONLY: Final = frozenset({"PrepareVmForMigration"})
"""Powers are needed to call them, and the VM has to be the caller's all the same."""
LATER: Final[dict[str, str]] = {
    "CommitImportedVm": "create the VM anew, from a disk image of its root",
    "CopyVm": "create another VM from the same image",
    "DebugVmImage": "create another VM from the image to look at",
    "ExportLocalVm": "stop the VM and get its volumes by GetVmVolume",
    "ImportLocalVm": "create the VM anew, from a disk image of its root",
    "MigrateVm": "create the VM anew there, from a disk image of its root",
    "NetbootMachine": "serve the machine's boot files by another DHCP and TFTP server",
    "PatchVmImage": "create a VM from the new image",
    "PowerOff": "stop the VMs, then power the machine off on itself",
    "PrepareVmForMigration": "stop the VM, and create it anew elsewhere",
    "ScanVmRoot": "get the volume by GetVmVolume, and look at it",
    "DiscardVmOldImage": "there is none: discard snapshots by DiscardVmSnapshot",
    "ReplaceVmImage": "create a VM from the new image",
    "RestoreVmImage": "go back to a snapshot by RestoreVmFromSnapshot",
}
"""By method: what to do in its place."""


class Later(Methods):
    """The methods of `LATER`."""

    def handlers(self) -> Mapping[str, Handler]:
        """By method name."""
        return {name: self._handler(name) for name in LATER}

    def _handler(self, name: str) -> Handler:
        if METHODS[f"Hypervisor.{name}"].shape is Shape.REQUEST_REPLY:
            return answering(self._answer)
        return self._stream

    async def _answer(self, call: Call, request: Any) -> Any:
        name = call.method.short_name
        if name not in ELSEWHERE and hasattr(request, "ip_address"):
            vm = self._agent.vm(request.ip_address)
            peer = without_powers(call.peer) if name in OWNERS_ONLY else call.peer
            vm.check_access(peer, getattr(request, "access_token", b""))
        raise NotSupportedError(asked=name, instead=LATER[name])

    async def _stream(self, call: Call) -> None:
        conn = call.conn
        assert call.method.request is not None
        request: Any = await conn.decode(call.method.request)
        behind = getattr(request, "image_data_size", 0)
        reply = await answering(self._answer)(call, request)
        conn.encode(reply)
        await conn.flush()
        limit = self._agent.parts.imports.limit
        if behind > limit:
            raise RequestError(detail=f"{behind} bytes announced: at most {limit} are taken")
        await Upload(conn, behind).drain()
