"""Reaching into a VM from outside: consoles, ports, and what it asks its metadata server."""

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Duration, Uint


class ConnectToVmConsoleRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmConsole``."""

    ip_address: IP = ""


class ConnectToVmConsoleResponse(Reply):
    """Reply of ``Hypervisor.ConnectToVmConsole``."""


class ConnectToVmManagerRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmManager``."""

    ip_address: IP = ""


class ConnectToVmManagerResponse(Reply):
    """Reply of ``Hypervisor.ConnectToVmManager``."""


class ConnectToVmSerialPortRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ConnectToVmSerialPort``."""

    ip_address: IP = ""
    port_number: Uint = 0
    """Only 0."""


class ConnectToVmSerialPortResponse(Reply):
    """Reply of ``Hypervisor.ConnectToVmSerialPort``; raw bytes follow, both ways."""


class ProbeVmPortRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ProbeVmPort``; ``timeout`` in ns."""

    ip_address: IP = ""
    port_number: Uint = 0
    """TCP."""
    timeout: Duration = 0


class ProbeVmPortResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ProbeVmPort``."""

    port_is_open: bool = False
    error: str = ""


class TraceVmMetadataRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.TraceVmMetadata``."""

    ip_address: IP = ""


class TraceVmMetadataResponse(Reply):
    """Reply of ``Hypervisor.TraceVmMetadata``; paths follow, one a line."""
