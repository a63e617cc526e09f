"""The part of the Hypervisor's client that changes VMs. Durations are ns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from smallstack.client.service import ServiceClient
from smallstack.proto import hypervisor as proto
from smallstack.proto.enums import ConsoleType, MachineType, VolumeInterface

SECOND = 1_000_000_000


class VmChanges(ServiceClient):
    """What does not say otherwise needs a stopped VM."""

    # At any time.

    async def change_vm_tags(self, ip_address: str, tags: Mapping[str, str]) -> None:
        """Give a VM these tags and no others, at any time."""
        request = proto.change.ChangeVmTagsRequest(ip_address=ip_address, tags=dict(tags))
        await self.checked("ChangeVmTags", request, proto.change.ChangeVmTagsResponse)

    async def change_vm_hostname(self, ip_address: str, hostname: str) -> None:
        """Give a VM another host name, at any time; it learns it by its next DHCP request."""
        request = proto.change.ChangeVmHostnameRequest(ip_address=ip_address, hostname=hostname)
        await self.checked("ChangeVmHostname", request, proto.change.ChangeVmHostnameResponse)

    async def change_vm_cpu_priority(self, ip_address: str, priority: int) -> None:
        """Give a VM another priority (-20 to 19, less is more), at any time."""
        request = proto.change.ChangeVmCpuPriorityRequest(
            ip_address=ip_address, cpu_priority=priority
        )
        await self.checked("ChangeVmCpuPriority", request, proto.change.ChangeVmCpuPriorityResponse)

    async def change_vm_destroy_protection(self, ip_address: str, protect: bool) -> None:
        """Have a running VM kept from being destroyed, or not; at any time."""
        request = proto.change.ChangeVmDestroyProtectionRequest(
            ip_address=ip_address, destroy_protection=protect
        )
        await self.checked(
            "ChangeVmDestroyProtection", request, proto.change.ChangeVmDestroyProtectionResponse
        )

    async def change_vm_owner_users(self, ip_address: str, users: Sequence[str]) -> None:
        """Give a VM these owners beside its primary one, at any time."""
        request = proto.access.ChangeVmOwnerUsersRequest(
            ip_address=ip_address, owner_users=list(users)
        )
        await self.checked("ChangeVmOwnerUsers", request, proto.access.ChangeVmOwnerUsersResponse)

    async def change_vm_owner_groups(self, ip_address: str, groups: Sequence[str]) -> None:
        """Have a VM owned by these groups too, at any time."""
        request = proto.access.ChangeVmOwnerGroupsRequest(
            ip_address=ip_address, owner_groups=list(groups)
        )
        await self.checked("ChangeVmOwnerGroups", request, proto.access.ChangeVmOwnerGroupsResponse)

    async def become_primary_vm_owner(self, ip_address: str) -> None:
        """Be the first of a VM's owners, at any time."""
        request = proto.access.BecomePrimaryVmOwnerRequest(ip_address=ip_address)
        await self.checked(
            "BecomePrimaryVmOwner", request, proto.access.BecomePrimaryVmOwnerResponse
        )

    async def get_vm_access_token(self, ip_address: str, lifetime: int = 3600 * SECOND) -> bytes:
        """A token that stands in for ownership for so long: a minute to 24 hours."""
        request = proto.access.GetVmAccessTokenRequest(ip_address=ip_address, lifetime=lifetime)
        return (
            await self.checked("GetVmAccessToken", request, proto.access.GetVmAccessTokenResponse)
        ).token

    async def discard_vm_access_token(self, ip_address: str, access_token: bytes = b"") -> None:
        """Have that token worth nothing any more."""
        request = proto.access.DiscardVmAccessTokenRequest(
            ip_address=ip_address, access_token=access_token
        )
        await self.checked(
            "DiscardVmAccessToken", request, proto.access.DiscardVmAccessTokenResponse
        )

    async def replace_vm_credentials(self, ip_address: str, certificate: bytes, key: bytes) -> None:
        """Give a VM a certificate and its key, in PEM, at any time; empty ones take them away.

        The VM reads them from its metadata service.
        """
        request = proto.access.ReplaceVmCredentialsRequest(
            ip_address=ip_address, identity_certificate=certificate, identity_key=key
        )
        await self.checked(
            "ReplaceVmCredentials", request, proto.access.ReplaceVmCredentialsResponse
        )

    async def replace_vm_identity(self, ip_address: str, requestor_certificate: bytes) -> None:
        """Give a VM a role, at any time; an empty certificate takes it away.

        The certificate, in PEM, is one that the identity provider gave for the Hypervisor's public
        key; by it the Hypervisor asks the provider for the VM's credentials, again and again.
        """
        request = proto.access.ReplaceVmIdentityRequest(
            ip_address=ip_address, identity_requestor_certificate=requestor_certificate
        )
        await self.checked("ReplaceVmIdentity", request, proto.access.ReplaceVmIdentityResponse)

    async def hold_vm_lock(self, ip_address: str, timeout: int, *, write: bool = True) -> None:
        """Keep others from changing a VM for so long, a minute at most."""
        request = proto.access.HoldVmLockRequest(
            ip_address=ip_address, timeout=timeout, write_lock=write
        )
        await self.checked("HoldVmLock", request, proto.access.HoldVmLockResponse)

    async def restore_vm_user_data(self, ip_address: str) -> None:
        """Go back to the user data before the latest change, at any time."""
        request = proto.user_data.RestoreVmUserDataRequest(ip_address=ip_address)
        await self.checked("RestoreVmUserData", request, proto.user_data.RestoreVmUserDataResponse)

    async def discard_vm_old_user_data(self, ip_address: str) -> None:
        """Forget the user data before the latest change, at any time."""
        request = proto.user_data.DiscardVmOldUserDataRequest(ip_address=ip_address)
        await self.checked(
            "DiscardVmOldUserData", request, proto.user_data.DiscardVmOldUserDataResponse
        )

    # While it is stopped.

    async def change_vm_size(
        self, ip_address: str, *, memory_in_mib: int = 0, milli_cpus: int = 0, virtual_cpus: int = 0
    ) -> None:
        """Give a VM another size; 0 leaves it as it is. A running one may get other milliCPUs, as
        far as they are as many processors as before."""
        request = proto.change.ChangeVmSizeRequest(
            ip_address=ip_address,
            memory_in_mib=memory_in_mib,
            milli_cpus=milli_cpus,
            virtual_cpus=virtual_cpus,
        )
        await self.checked("ChangeVmSize", request, proto.change.ChangeVmSizeResponse)

    async def change_vm_console_type(self, ip_address: str, console: ConsoleType) -> None:
        """Give a VM another console."""
        request = proto.change.ChangeVmConsoleTypeRequest(
            ip_address=ip_address, console_type=console
        )
        await self.checked("ChangeVmConsoleType", request, proto.change.ChangeVmConsoleTypeResponse)

    async def change_vm_machine_type(self, ip_address: str, machine: MachineType) -> None:
        """Have a VM emulated as another machine."""
        request = proto.change.ChangeVmMachineTypeRequest(
            ip_address=ip_address, machine_type=machine
        )
        await self.checked("ChangeVmMachineType", request, proto.change.ChangeVmMachineTypeResponse)

    async def change_vm_num_network_queues(self, ip_address: str, queues: Sequence[int]) -> None:
        """Give each network interface of a VM so many queues."""
        request = proto.change.ChangeVmNumNetworkQueuesRequest(
            ip_address=ip_address, num_queues_per_interface=list(queues)
        )
        await self.checked(
            "ChangeVmNumNetworkQueues", request, proto.change.ChangeVmNumNetworkQueuesResponse
        )

    async def change_vm_volume_interfaces(
        self, ip_address: str, interfaces: Sequence[VolumeInterface]
    ) -> None:
        """Put each volume of a VM behind another interface."""
        request = proto.volumes.ChangeVmVolumeInterfacesRequest(
            ip_address=ip_address, interfaces=list(interfaces)
        )
        await self.checked(
            "ChangeVmVolumeInterfaces", request, proto.volumes.ChangeVmVolumeInterfacesResponse
        )

    async def change_vm_subnet(self, ip_address: str, subnet_id: str) -> str:
        """Give a VM an address in another subnet, which is its name from then on."""
        request = proto.change.ChangeVmSubnetRequest(ip_address=ip_address, subnet_id=subnet_id)
        return (
            await self.checked("ChangeVmSubnet", request, proto.change.ChangeVmSubnetResponse)
        ).new_ip_address
