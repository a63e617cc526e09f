"""Moving and copying VMs between Hypervisors, and between agents of one machine."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from msgspec import field

from smallstack.proto.hypervisor.base import HypervisorMessage, Reply
from smallstack.proto.kinds import IP, Duration, Embedded, Omit
from smallstack.proto.vm import ExportLocalVmInfo, VmInfo


class CommitImportedVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.CommitImportedVm``."""

    ip_address: IP = ""


class CommitImportedVmResponse(Reply):
    """Reply of ``Hypervisor.CommitImportedVm``."""


class CopyVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.CopyVm``."""

    access_token: bytes = b""
    ip_address: IP = ""
    skip_memory_check: bool = False
    source_hypervisor: str = ""
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)


class CopyVmResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.CopyVm``: several, the last one has ``final`` set."""

    error: str = ""
    final: bool = False
    ip_address: IP = ""
    progress_message: str = ""


class ExportLocalVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ExportLocalVm``."""

    ip_address: IP = ""
    verification_cookie: Omit[bytes] = b""


class ExportLocalVmResponse(HypervisorMessage, kw_only=True):
    """Reply of ``Hypervisor.ExportLocalVm``."""

    error: str = ""
    vm_info: ExportLocalVmInfo = field(default_factory=ExportLocalVmInfo)


class ImportLocalVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.ImportLocalVm``."""

    skip_memory_check: bool = False
    verification_cookie: Omit[bytes] = b""
    vm_info: Embedded[VmInfo] = field(default_factory=VmInfo)
    volume_filenames: list[str] = []


class ImportLocalVmResponse(Reply):
    """Reply of ``Hypervisor.ImportLocalVm``."""


class MigrateVmRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.MigrateVm``."""

    access_token: bytes = b""
    dhcp_timeout: Duration = 0
    ip_address: IP = ""
    skip_memory_check: bool = False
    source_hypervisor: str = ""


class MigrateVmResponse(HypervisorMessage, kw_only=True):
    """Replies of ``Hypervisor.MigrateVm``; ``request_commit`` asks for a
    MigrateVmResponseResponse.
    """

    error: str = ""
    final: bool = False
    progress_message: str = ""
    request_commit: bool = False


class MigrateVmResponseResponse(HypervisorMessage, kw_only=True):
    """The client's word on whether a migration is to be committed."""

    commit: bool = False


class PrepareVmForMigrationRequest(HypervisorMessage, kw_only=True):
    """Request of ``Hypervisor.PrepareVmForMigration``."""

    access_token: bytes = b""
    enable: bool = False
    ip_address: IP = ""


class PrepareVmForMigrationResponse(Reply):
    """Reply of ``Hypervisor.PrepareVmForMigration``."""
