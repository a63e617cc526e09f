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
    memory_in_mib: Omit[Uint64] = 0
    num_cpus: Omit[Uint] = 0
    total_volume_bytes: Omit[Uint64] = 0


class GetIdentityProviderRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetIdentityProvider``."""


class GetIdentityProviderResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetIdentityProvider``."""

    error: str = ""
    base_url: str = ""


class GetPublicKeyRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetPublicKey``."""


class GetPublicKeyResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetPublicKey``."""

    error: str = ""
    key_pem: bytes = b""


class GetRootCookiePathRequest(HypervisorMessage):
    """Request of ``Hypervisor.GetRootCookiePath``."""


class GetRootCookiePathResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetRootCookiePath``."""

    error: str = ""
    path: str = ""


class GetUpdatesRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetUpdates``."""

    register_external_leases_request: RegisterExternalLeasesRequest | None = None


class Update(HypervisorMessage, kw_only=True):
    """One message of ``Hypervisor.GetUpdates``: the whole state first, then what changed.

    A VM that is gone comes as an all-zero VmInfo: it has no volumes.
    """

    have_address_pool: Omit[bool] = False
    address_pool: Omit[list[Address]] = []
    architecture_type: Omit[ArchitectureType] = ArchitectureType.AUTO
    available_memory_in_mib: Omit[Uint64 | None] = None
    have_disabled: Omit[bool] = False
    disabled: Omit[bool] = False
    memory_in_mib: Omit[Uint64 | None] = None
    num_cpus: Omit[Uint | None] = None
    num_free_addresses: Omit[dict[str, Uint]] = {}
    health_status: Omit[str] = ""
    have_serial_number: Omit[bool] = False
    serial_number: Omit[str] = ""
    have_subnets: Omit[bool] = False
    subnets: Omit[list[Subnet]] = []
    total_volume_bytes: Omit[Uint64 | None] = None
    have_vms: Omit[bool] = False
    vms: Omit[dict[str, Pointed[VmInfo]]] = {}


class HoldLockRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.HoldLock``."""

    timeout: Duration = 0
    write_lock: bool = False


class HoldLockResponse(Reply):
    """Reply of ``Hypervisor.HoldLock``."""


class PowerOffRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.PowerOff``."""

    stop_vms: bool = False


class PowerOffResponse(Reply):
    """Reply of ``Hypervisor.PowerOff``."""


class SetDisabledStateRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.SetDisabledState``."""

    disable: bool = False


class SetDisabledStateResponse(Reply):
    """Reply of ``Hypervisor.SetDisabledState``."""
