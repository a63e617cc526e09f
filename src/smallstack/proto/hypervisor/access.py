"""Who may do what with a VM, and as whom it speaks: owners, tokens, locks, identities."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Duration, Omit


class BecomePrimaryVmOwnerRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.BecomePrimaryVmOwner``."""

    ip_address: IP = ""


class BecomePrimaryVmOwnerResponse(Reply):
    """Reply of ``Hypervisor.BecomePrimaryVmOwner``."""


class ChangeVmOwnerGroupsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmOwnerGroups``."""

    ip_address: IP = ""
    owner_groups: list[str] = []


class ChangeVmOwnerGroupsResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmOwnerGroups``."""


class ChangeVmOwnerUsersRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ChangeVmOwnerUsers``."""

    ip_address: IP = ""
    owner_users: list[str] = []


class ChangeVmOwnerUsersResponse(Reply):
    """Reply of ``Hypervisor.ChangeVmOwnerUsers``."""


class DiscardVmAccessTokenRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DiscardVmAccessToken``."""

    access_token: bytes = b""
    ip_address: IP = ""


class DiscardVmAccessTokenResponse(Reply):
    """Reply of ``Hypervisor.DiscardVmAccessToken``."""


class GetVmAccessTokenRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmAccessToken``."""

    ip_address: IP = ""
    lifetime: Duration = 0
    """From a minute to a day."""


class GetVmAccessTokenResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmAccessToken``."""

    token: Omit[bytes] = b""
    error: str = ""


class HoldVmLockRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.HoldVmLock``."""

    ip_address: IP = ""
    timeout: Duration = 0
    """At most a minute."""
    write_lock: bool = False


class HoldVmLockResponse(Reply):
    """Reply of ``Hypervisor.HoldVmLock``."""


class ReplaceVmCredentialsRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmCredentials``."""

    identity_certificate: bytes = b""
    """PEM (X.509); empty: the VM has no identity from now on."""
    identity_key: bytes = b""
    """PEM, the key of that certificate."""
    ip_address: IP = ""


class ReplaceVmCredentialsResponse(Reply):
    """Reply of ``Hypervisor.ReplaceVmCredentials``."""


class ReplaceVmIdentityRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmIdentity``."""

    identity_requestor_certificate: bytes = b""
    """PEM (X.509), for the key that ``Hypervisor.GetPublicKey`` tells; empty: no identity."""
    ip_address: IP = ""


class ReplaceVmIdentityResponse(Reply):
    """Reply of ``Hypervisor.ReplaceVmIdentity``."""
