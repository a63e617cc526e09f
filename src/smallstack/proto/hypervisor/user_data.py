"""The user data of a VM: reading it, putting other data there, going back."""

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Uint64


class DiscardVmOldUserDataRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DiscardVmOldUserData``."""

    ip_address: IP = ""


class DiscardVmOldUserDataResponse(Reply):
    """Reply of ``Hypervisor.DiscardVmOldUserData``."""


class GetVmUserDataRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.GetVmUserData``."""

    access_token: bytes = b""
    ip_address: IP = ""


class GetVmUserDataResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.GetVmUserData``; ``length`` bytes follow it."""

    error: str = ""
    length: Uint64 = 0


class ReplaceVmUserDataRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ReplaceVmUserData``; ``size`` bytes of user data follow it."""

    ip_address: IP = ""
    size: Uint64 = 0


class ReplaceVmUserDataResponse(Reply):
    """Reply of ``Hypervisor.ReplaceVmUserData``."""


class RestoreVmUserDataRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.RestoreVmUserData``."""

    ip_address: IP = ""


class RestoreVmUserDataResponse(Reply):
    """Reply of ``Hypervisor.RestoreVmUserData``."""
