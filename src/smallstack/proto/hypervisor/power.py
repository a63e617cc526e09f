"""Starting, stopping and rebooting a VM, and ending it for good."""

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Duration


class DestroyVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.DestroyVm``."""

    access_token: bytes = b""
    ip_address: IP = ""


class DestroyVmResponse(Reply):
    """Reply of ``Hypervisor.DestroyVm``."""


class RebootVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.RebootVm``."""

    dhcp_timeout: Duration = 0
    ip_address: IP = ""


class RebootVmResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.RebootVm``."""

    dhcp_timed_out: bool = False
    error: str = ""


class StartVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.StartVm``."""

    access_token: bytes = b""
    dhcp_timeout: Duration = 0
    ip_address: IP = ""


class StartVmResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.StartVm``."""

    dhcp_timed_out: bool = False
    error: str = ""


class StopVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.StopVm``."""

    access_token: bytes = b""
    ip_address: IP = ""


class StopVmResponse(Reply):
    """Reply of ``Hypervisor.StopVm``."""
