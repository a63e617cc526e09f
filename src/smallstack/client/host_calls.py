"""The part of the Hypervisor's client that is about the machine itself. Durations are ns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from smallstack.client.errors import ServiceError
from smallstack.client.service import ServiceClient, receive
from smallstack.proto import hypervisor as proto
from smallstack.proto.vm import Address


class HostCalls(ServiceClient):
    """Changing something here needs method powers."""

    async def change_owners(self, users: Sequence[str], groups: Sequence[str]) -> None:
        """Have these own the Hypervisor: they may call every method."""
        request = proto.host.ChangeOwnersRequest(owner_users=list(users), owner_groups=list(groups))
        await self.checked("ChangeOwners", request, proto.host.ChangeOwnersResponse)

    async def set_disabled_state(self, disable: bool) -> None:
        """Have VMs created and started no more, or again."""
        request = proto.host.SetDisabledStateRequest(disable=disable)
        await self.checked("SetDisabledState", request, proto.host.SetDisabledStateResponse)

    async def hold_lock(self, timeout: int, *, write: bool = True) -> None:
        """Have creates and changes of addresses wait for so long, a minute at most."""
        request = proto.host.HoldLockRequest(timeout=timeout, write_lock=write)
        await self.checked("HoldLock", request, proto.host.HoldLockResponse)

    async def get_identity_provider(self) -> str:
        """The base URL of the provider of VMs' credentials."""
        request = proto.host.GetIdentityProviderRequest()
        return (
            await self.checked(
                "GetIdentityProvider", request, proto.host.GetIdentityProviderResponse
            )
        ).base_url

    async def get_public_key(self) -> bytes:
        """The Hypervisor's public key, in PEM."""
        request = proto.host.GetPublicKeyRequest()
        return (
            await self.checked("GetPublicKey", request, proto.host.GetPublicKeyResponse)
        ).key_pem

    async def get_root_cookie_path(self) -> str:
        """The file that only root of the Hypervisor's machine can read."""
        request = proto.host.GetRootCookiePathRequest()
        return (
            await self.checked("GetRootCookiePath", request, proto.host.GetRootCookiePathResponse)
        ).path

    async def list_volume_directories(self) -> list[str]:
        """Where volumes lie; for callers on the same machine only."""
        request = proto.volumes.ListVolumeDirectoriesRequest()
        return (
            await self.checked(
                "ListVolumeDirectories", request, proto.volumes.ListVolumeDirectoriesResponse
            )
        ).directories

    async def register_external_leases(
        self, addresses: Sequence[Address], hostnames: Sequence[str] = ()
    ) -> None:
        """Have these machines, none of them a VM, get their addresses by DHCP; and no others."""
        request = proto.network.RegisterExternalLeasesRequest(
            addresses=list(addresses), hostnames=list(hostnames)
        )
        await self.checked(
            "RegisterExternalLeases", request, proto.network.RegisterExternalLeasesResponse
        )

    async def watch_dhcp(
        self, interface: str = "", max_packets: int = 0
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """DHCP messages that come in, each with its bridge: on one or all, so many or without
        end."""
        async with self.client.raw("Hypervisor.WatchDhcp") as conn:
            conn.encode(
                proto.network.WatchDhcpRequest(interface=interface, max_packets=max_packets)
            )
            await conn.flush()
            count = 0
            while not max_packets or count < max_packets:
                reply = self.check(await conn.decode(proto.network.WatchDhcpResponse))
                count += 1
                yield reply.interface, reply.packet

    async def netboot_machine(self, request: proto.network.NetbootMachineRequest) -> None:
        """Serve a machine that is no VM its address and its boot files, once."""
        await self.checked("NetbootMachine", request, proto.network.NetbootMachineResponse)

    async def power_off(self, stop_vms: bool = False) -> None:
        """Power the machine off; its VMs must have stopped, or are stopped."""
        request = proto.host.PowerOffRequest(stop_vms=stop_vms)
        await self.checked("PowerOff", request, proto.host.PowerOffResponse)

    async def get_vm_create_request(self, ip_address: str) -> proto.create.CreateVmRequest:
        """What a VM's creator asked for."""
        request = proto.info.GetVmCreateRequestRequest(ip_address=ip_address)
        return (
            await self.checked("GetVmCreateRequest", request, proto.info.GetVmCreateRequestResponse)
        ).create_vm_request

    async def list_vm_virtualiser_log_files(self, ip_address: str) -> dict[str, int]:
        """The logs of a VM's QEMU: bytes by name."""
        request = proto.info.ListVmVirtualiserLogFilesRequest(ip_address=ip_address)
        reply = await self.checked(
            "ListVmVirtualiserLogFiles", request, proto.info.ListVmVirtualiserLogFilesResponse
        )
        return dict(zip(reply.filenames, reply.lengths, strict=True))

    async def get_vm_virtualiser_log_file(
        self, ip_address: str, filename: str
    ) -> AsyncGenerator[bytes, None]:
        """One of them, in pieces."""
        async with self.client.raw("Hypervisor.GetVmVirtualiserLogFile") as conn:
            conn.encode(
                proto.info.GetVmVirtualiserLogFileRequest(ip_address=ip_address, filename=filename)
            )
            await conn.flush()
            reply = await conn.decode(proto.info.GetVmVirtualiserLogFileResponse)
            if not reply.error:
                async for data in receive(conn, reply.length):
                    yield data
        if reply.error:
            raise ServiceError(text=reply.error)

    async def get_vm_volume_storage_configuration(
        self, ip_address: str
    ) -> proto.volumes.GetVmVolumeStorageConfigurationResponse:
        """Space of the volume directories, and in which of them each volume of a VM is."""
        request = proto.volumes.GetVmVolumeStorageConfigurationRequest(ip_address=ip_address)
        return await self.checked(
            "GetVmVolumeStorageConfiguration",
            request,
            proto.volumes.GetVmVolumeStorageConfigurationResponse,
        )
