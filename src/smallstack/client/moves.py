"""The part of the Hypervisor's client that moves VMs: between Hypervisors, and in and out of one.

`MigrateVm` and `CopyVm` are calls to the Hypervisor that the VM comes to. Durations are ns.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from smallstack.client.following import follow
from smallstack.client.service import ServiceClient
from smallstack.proto import hypervisor as proto
from smallstack.proto.vm import ExportLocalVmInfo, VmInfo


class Moves(ServiceClient):
    """The token is what `get_vm_access_token` of the Hypervisor it comes from gave."""

    async def copy_vm(
        self,
        source: str,
        ip_address: str,
        vm_info: VmInfo,
        *,
        access_token: bytes = b"",
        skip_memory_check: bool = False,
    ) -> AsyncGenerator[proto.migrate.CopyVmResponse, None]:
        """Copy a VM of the Hypervisor ``source`` (``host:port``) to here, under a new address.

        Every message as it comes; the last has ``final`` and the address. The copy is stopped, and
        destroyed unless it is acknowledged within 15 s.
        """
        request = proto.migrate.CopyVmRequest(
            source_hypervisor=source,
            ip_address=ip_address,
            vm_info=vm_info,
            access_token=access_token,
            skip_memory_check=skip_memory_check,
        )
        method = "Hypervisor.CopyVm"
        replies = follow(self.client, method, request, proto.migrate.CopyVmResponse)
        async with aclosing(replies):
            async for reply in replies:
                yield reply

    async def migrate_vm(
        self,
        source: str,
        ip_address: str,
        commit: Callable[[], Awaitable[bool]],
        *,
        access_token: bytes = b"",
        dhcp_timeout: int = 0,
        skip_memory_check: bool = False,
    ) -> AsyncGenerator[proto.migrate.MigrateVmResponse, None]:
        """Bring a VM of the Hypervisor ``source`` (``host:port``) here, with its address.

        Every message as it comes. Once the VM runs here, ``commit`` is asked whether it stays;
        otherwise it goes back.
        """
        request = proto.migrate.MigrateVmRequest(
            source_hypervisor=source,
            ip_address=ip_address,
            access_token=access_token,
            dhcp_timeout=dhcp_timeout,
            skip_memory_check=skip_memory_check,
        )
        method = "Hypervisor.MigrateVm"
        replies = follow(self.client, method, request, proto.migrate.MigrateVmResponse)
        async with aclosing(replies):
            async for reply in replies:
                yield reply
                if reply.request_commit:
                    answer = proto.migrate.MigrateVmResponseResponse(commit=await commit())
                    self.client.conn.encode(answer)
                    await self.client.conn.flush()

    async def prepare_vm_for_migration(
        self, ip_address: str, enable: bool = True, *, access_token: bytes = b""
    ) -> None:
        """Have a stopped VM given away, or not after all; the Hypervisor it comes to calls this."""
        request = proto.migrate.PrepareVmForMigrationRequest(
            ip_address=ip_address, enable=enable, access_token=access_token
        )
        await self.checked(
            "PrepareVmForMigration", request, proto.migrate.PrepareVmForMigrationResponse
        )

    async def export_local_vm(self, ip_address: str, cookie: bytes) -> ExportLocalVmInfo:
        """Give a stopped VM to something else on the same machine: where its volumes lie.

        ``cookie`` is what the file of `get_root_cookie_path` has.
        """
        request = proto.migrate.ExportLocalVmRequest(
            ip_address=ip_address, verification_cookie=cookie
        )
        return (
            await self.checked("ExportLocalVm", request, proto.migrate.ExportLocalVmResponse)
        ).vm_info

    async def import_local_vm(
        self,
        vm_info: VmInfo,
        volume_filenames: Sequence[str],
        cookie: bytes,
        *,
        skip_memory_check: bool = False,
    ) -> None:
        """Take a VM over from something else on the same machine; see `commit_imported_vm`."""
        request = proto.migrate.ImportLocalVmRequest(
            vm_info=vm_info,
            volume_filenames=list(volume_filenames),
            verification_cookie=cookie,
            skip_memory_check=skip_memory_check,
        )
        await self.checked("ImportLocalVm", request, proto.migrate.ImportLocalVmResponse)

    async def commit_imported_vm(self, ip_address: str) -> None:
        """Keep a VM that was taken over."""
        request = proto.migrate.CommitImportedVmRequest(ip_address=ip_address)
        await self.checked("CommitImportedVm", request, proto.migrate.CommitImportedVmResponse)
