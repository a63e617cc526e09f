"""Calls with many replies, some of them questions, to handlers that answer as upstream's do."""

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from smallstack.client.errors import ServiceError, SourceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.proto.filesystem import FileSystemBuilder
from smallstack.proto.hypervisor import every as proto
from smallstack.proto.vm import ExportLocalVmInfo, LocalVmInfo, VmInfo
from smallstack.srpc.server import Call
from tests.client.conftest import Serve

IP = "198.51.100.7"
SOURCE = "hv2.example:6976"


class Target:
    """A Hypervisor that VMs come to, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def handlers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in dir(type(self)) if name[0].isupper()}

    async def MigrateVm(self, call: Call) -> None:  # noqa: N802
        conn = call.conn
        self.heard.append(await conn.decode(proto.MigrateVmRequest))
        conn.encode(proto.MigrateVmResponse(progress_message="initial volume(s) copy"))
        conn.encode(proto.MigrateVmResponse(request_commit=True))
        await conn.flush()
        answer = await conn.decode(proto.MigrateVmResponseResponse)
        error = "" if answer.commit else "not committed"
        conn.encode(proto.MigrateVmResponse(final=True, error=error))

    async def CopyVm(self, call: Call) -> None:  # noqa: N802
        self.heard.append(await call.conn.decode(proto.CopyVmRequest))
        call.conn.encode(proto.CopyVmResponse(progress_message="stopping VM"))
        call.conn.encode(proto.CopyVmResponse(final=True, ip_address=IP))

    async def DebugVmImage(self, call: Call) -> None:  # noqa: N802
        request = await call.conn.decode(proto.DebugVmImageRequest)
        self.heard.append(await call.conn.read_exactly(request.image_data_size))
        call.conn.encode(proto.DebugVmImageResponse(final=True))

    async def ReplaceVmImage(self, call: Call) -> None:  # noqa: N802
        request = await call.conn.decode(proto.ReplaceVmImageRequest)
        self.heard.append(await call.conn.read_exactly(request.image_data_size))
        call.conn.encode(proto.ReplaceVmImageResponse(final=True))

    async def RestoreVmImage(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.RestoreVmImageResponse(error="there is no old image")

    async def DiscardVmOldImage(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.DiscardVmOldImageResponse()

    async def PatchVmImage(self, call: Call) -> None:  # noqa: N802
        self.heard.append(await call.conn.decode(proto.PatchVmImageRequest))
        call.conn.encode(proto.PatchVmImageResponse(progress_message="copying root"))
        call.conn.encode(proto.PatchVmImageResponse(error="it contains no filter"))

    async def GetVmLastPatchLog(self, call: Call) -> None:  # noqa: N802
        request = await call.conn.decode(proto.GetVmLastPatchLogRequest)
        if request.ip_address != IP:
            call.conn.encode(proto.GetVmLastPatchLogResponse(error="no such VM"))
            return
        call.conn.encode(proto.GetVmLastPatchLogResponse(length=3))
        call.conn.write(b"log")

    async def ScanVmRoot(self, call: Call, request: Any) -> Any:  # noqa: N802
        tree = FileSystemBuilder().build() if request.ip_address == IP else None
        return proto.ScanVmRootResponse(file_system=tree)

    async def ExportLocalVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        info = ExportLocalVmInfo(
            bridges=["br0"], local_vm_info=LocalVmInfo(vm_info=VmInfo(hostname="away"))
        )
        return proto.ExportLocalVmResponse(vm_info=info)

    async def ImportLocalVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.ImportLocalVmResponse()

    async def CommitImportedVm(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.CommitImportedVmResponse(error="it is not there")

    async def PrepareVmForMigration(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.PrepareVmForMigrationResponse()

    async def PowerOff(self, call: Call, request: Any) -> Any:  # noqa: N802
        return proto.PowerOffResponse(error=f"{IP} is running")

    async def NetbootMachine(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.NetbootMachineResponse()

    async def ReplaceVmCredentials(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.ReplaceVmCredentialsResponse()

    async def ReplaceVmIdentity(self, call: Call, request: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return proto.ReplaceVmIdentityResponse()


async def test_a_migration_is_committed_or_goes_back(serve: Serve) -> None:
    target = Target()

    async def yes() -> bool:
        return True

    async def no() -> bool:
        return False

    async with (
        serve("Hypervisor", target.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        replies = [one async for one in client.migrate_vm(SOURCE, IP, yes, access_token=b"t")]
        assert [(one.progress_message, one.request_commit, one.final) for one in replies] == [
            ("initial volume(s) copy", False, False),
            ("", True, False),
            ("", False, True),
        ]
        assert target.heard.pop() == proto.MigrateVmRequest(
            source_hypervisor=SOURCE, ip_address=IP, access_token=b"t"
        )
        with pytest.raises(ServiceError, match=r"^not committed$"):
            async for _ in client.migrate_vm(SOURCE, IP, no):
                pass
        copied = [one async for one in client.copy_vm(SOURCE, IP, VmInfo(hostname="two"))]
        assert (copied[-1].final, copied[-1].ip_address) == (True, IP)
        assert target.heard[-1].vm_info.hostname == "two"


async def test_roots(serve: Serve, tmp_path: Path) -> None:
    target = Target()
    image = tmp_path / "image"
    image.write_bytes(b"i" * 300_000)
    told: list[tuple[int, int]] = []
    async with (
        serve("Hypervisor", target.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        debugging = client.debug_vm_image(
            proto.DebugVmImageRequest(ip_address=IP), image, lambda *sent: told.append(sent)
        )
        assert [one.final async for one in debugging] == [True]
        assert target.heard.pop() == b"i" * 300_000
        assert told[-1] == (300_000, 300_000)
        replacing = client.replace_vm_image(proto.ReplaceVmImageRequest(ip_address=IP), b"root")
        assert [one.final async for one in replacing] == [True]
        assert target.heard.pop() == b"root"
        with pytest.raises(ServiceError, match="there is no old image"):
            await client.restore_vm_image(IP)
        await client.discard_vm_old_image(IP)
        assert target.heard.pop() == proto.DiscardVmOldImageRequest(ip_address=IP)
        with pytest.raises(SourceError, match="it is empty"):
            await anext(client.debug_vm_image(proto.DebugVmImageRequest(), b""))
        seen = []
        with pytest.raises(ServiceError, match="it contains no filter"):
            async with aclosing(client.patch_vm_image(proto.PatchVmImageRequest())) as replies:
                async for reply in replies:
                    seen.append(reply.progress_message)  # noqa: PERF401 - it is cut off
        assert seen == ["copying root"]
        assert len(await client.scan_vm_root(IP)) == 1
        with pytest.raises(ServiceError, match="sent no tree"):
            await client.scan_vm_root("198.51.100.8")
        assert (await client.get_vm_last_patch_log(IP))[1] == b"log"
        with pytest.raises(ServiceError, match="no such VM"):
            await client.get_vm_last_patch_log("198.51.100.8")


async def test_the_rest(serve: Serve) -> None:
    target = Target()
    async with (
        serve("Hypervisor", target.handlers()) as address,
        await HypervisorClient.connect(address, None) as client,
    ):
        away = await client.export_local_vm(IP, b"c" * 32)
        assert away.local_vm_info.vm_info.hostname == "away"
        await client.import_local_vm(VmInfo(hostname="here"), ["/a", "/b"], b"c" * 32)
        assert target.heard.pop().volume_filenames == ["/a", "/b"]
        with pytest.raises(ServiceError, match="it is not there"):
            await client.commit_imported_vm(IP)
        await client.prepare_vm_for_migration(IP, enable=False)
        assert not target.heard.pop().enable
        with pytest.raises(ServiceError, match="is running"):
            await client.power_off()
        await client.netboot_machine(proto.NetbootMachineRequest(hostname="metal"))
        assert target.heard.pop().hostname == "metal"
        await client.replace_vm_credentials(IP, b"certificate", b"key")
        assert target.heard.pop() == proto.ReplaceVmCredentialsRequest(
            ip_address=IP, identity_certificate=b"certificate", identity_key=b"key"
        )
        await client.replace_vm_identity(IP, b"certificate")
        assert target.heard.pop().identity_requestor_certificate == b"certificate"
