"""The Hypervisor itself: capacity, owners, keys, locks, and the stream of what changes on it."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from smallstack.proto.enums import ArchitectureType
from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.hypervisor.network import RegisterExternalLeasesRequest
from smallstack.proto.kinds import Duration, Omit, Pointed, Uint, Uint64
from smallstack.proto.vm import Address, Subnet, VmInfo


class ChangeOwnersRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeOwners``."""

    owner_groups: Omit[list[str]] = []
    owner_users: Omit[list[str]] = []


class ChangeOwnersResponse(Reply):
    """Reply of ``Hypervisor.ChangeOwners``."""


class GetCapacityRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetCapacity``."""


class GetCapacityResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetCapacity``."""

    error: Omit[str] = ""
    available_memory_in_mib: Omit[Uint64] = 0
    """What the operating system says is available."""
    memory_in_mib: Omit[Uint64] = 0
    """All there is."""
    num_cpus: Omit[Uint] = 0
    total_volume_bytes: Omit[Uint64] = 0
    """The size of all file systems for volumes."""


class GetIdentityProviderRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetIdentityProvider``."""


class GetIdentityProviderResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetIdentityProvider``."""

    error: str = ""
    base_url: str = ""
    """Empty where there is none."""


class GetPublicKeyRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetPublicKey``."""


class GetPublicKeyResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetPublicKey``."""

    error: str = ""
    key_pem: bytes = b""
    """PEM (PKIX); the key of the agent's own certificate."""


class GetRootCookiePathRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetRootCookiePath``."""


class GetRootCookiePathResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetRootCookiePath``."""

    error: str = ""
    path: str = ""
    """A file that only root of that machine reads; its 32 bytes prove it."""


class GetUpdatesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetUpdates``."""

    register_external_leases_request: RegisterExternalLeasesRequest | None = None


class Update(HypervisorMessage, kw_only=True):
    """One message of ``Hypervisor.GetUpdates``: the whole state first, then what changed.

    A VM that is gone comes as an all-zero VmInfo: it has no volumes.
    """

    have_address_pool: Omit[bool] = False
    """Whether `address_pool` says something; without it the pool is as before."""
    address_pool: Omit[list[Address]] = []
    """Every registered address, free or not."""
    architecture_type: Omit[ArchitectureType] = ArchitectureType.AUTO
    available_memory_in_mib: Omit[Uint64 | None] = None
    have_disabled: Omit[bool] = False
    disabled: Omit[bool] = False
    memory_in_mib: Omit[Uint64 | None] = None
    num_cpus: Omit[Uint | None] = None
    num_free_addresses: Omit[dict[str, Uint]] = {}
    """By subnet."""
    health_status: Omit[str] = ""
    """Empty: nothing is known."""
    have_serial_number: Omit[bool] = False
    serial_number: Omit[str] = ""
    have_subnets: Omit[bool] = False
    subnets: Omit[list[Subnet]] = []
    total_volume_bytes: Omit[Uint64 | None] = None
    have_vms: Omit[bool] = False
    vms: Omit[dict[str, Pointed[VmInfo]]] = {}
    """By IP address."""


class HoldLockRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.HoldLock``."""

    timeout: Duration = 0
    """At most a minute."""
    write_lock: bool = False


class HoldLockResponse(Reply):
    """Reply of ``Hypervisor.HoldLock``."""


class PowerOffRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.PowerOff``."""

    stop_vms: bool = False
    """Otherwise every VM must have stopped."""


class PowerOffResponse(Reply):
    """Reply of ``Hypervisor.PowerOff``."""


class SetDisabledStateRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.SetDisabledState``."""

    disable: bool = False


class SetDisabledStateResponse(Reply):
    """Reply of ``Hypervisor.SetDisabledState``."""
