"""What a create may ask for, checked before anything is reserved. The texts are upstream's."""

from smallstack.hypervisor.errors import (
    NoImageError,
    NotAuthenticatedError,
    NotSupportedError,
    RequestError,
)
from smallstack.hypervisor.image_url import parse_image_url
from smallstack.hypervisor.specs import check_supported
from smallstack.network.subnets import Caller
from smallstack.proto.enums import ArchitectureType, VolumeFormat, VolumeType
from smallstack.proto.hypervisor.create import (
    IMAGE_FORMATS,
    MAX_USER_DATA,
    CreateVmRequest,
    OwnCreateVmRequest,
)
from smallstack.proto.kinds import Word
from smallstack.volumes.foreign.formats import DiskFormat

MAX_TEXT = 4096
"""Characters of kernel options."""
MAX_HOSTNAME, MAX_LABEL = 253, 63
"""Characters of a host name and of what is between its dots (RFC 1035, 2.3.4)."""
MIN_PRIORITY, MAX_PRIORITY = -20, 19
MAX_DISK = 1 << 62
"""Bytes of a disk; what the machine has is the ledger's to say."""
MAX_ROUNDUP = 40
"""Root volumes are rounded up to a TiB at most."""


def check_create(
    request: CreateVmRequest,
    caller: Caller,
    *,
    anonymous: bool = False,
    processors: int | None = None,
) -> None:
    """``anonymous``: a caller needs no name. ``processors``: how many this machine has.

    Raises NotAuthenticatedError, RequestError, NotSupportedError or NoImageError."""
    info = request.vm_info
    if not caller.username and not anonymous:
        raise NotAuthenticatedError
    check_hostname(info.hostname)
    words: list[Word] = [volume.interface for volume in info.volumes]
    words += [info.architecture_type, info.console_type, info.firmware_type]
    words += [info.machine_type, info.watchdog_action, info.watchdog_model]
    check_known(*words)
    check_priority(info.cpu_priority, caller)
    if info.memory_in_mib < 1:
        raise RequestError(detail="no memory specified")
    if info.milli_cpus < 1:
        raise RequestError(detail="no CPUs specified")
    if 0 < info.virtual_cpus < info.milli_cpus // 1000:
        raise RequestError(detail=f"VirtualCPUs must be at least {info.milli_cpus // 1000}")
    if processors is not None and info.virtual_cpus > processors:
        raise RequestError(
            detail=f"VirtualCPUs: {info.virtual_cpus}: this machine has {processors} processors"
        )
    if request.roundup_power > MAX_ROUNDUP:
        raise RequestError(detail=f"RoundupPower: {request.roundup_power}: at most {MAX_ROUNDUP}")
    if info.virtualiser_image_name and not caller.have_method_access:
        raise RequestError(detail="custom virtualiser not permitted")
    if len(info.extra_kernel_options) > MAX_TEXT or not info.extra_kernel_options.isprintable():
        raise RequestError(detail="ExtraKernelOptions must be one line of printable characters")
    if request.user_data_size > MAX_USER_DATA:
        raise RequestError(
            detail=f"{request.user_data_size} bytes of user data: at most {MAX_USER_DATA}"
        )
    _check_built(request)


def check_known(*words: Word) -> None:
    """Values of enumerations that this version knows. Raises RequestError."""
    for word in words:
        if not word.is_known:
            raise RequestError(detail=f"{word.text} {int(word)}: use a value that exists")


def check_priority(priority: int, caller: Caller) -> None:
    """What setpriority(2) takes; to be before others needs powers. Raises RequestError."""
    if priority < 0 and not caller.have_method_access:
        raise RequestError(detail=f"insufficient privilege to set CpuPriority={priority}")
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise RequestError(
            detail=f"CpuPriority={priority}: it goes from {MIN_PRIORITY} to {MAX_PRIORITY}"
        )


def check_hostname(hostname: str) -> None:
    """ASCII letters, digits, ``-`` and ``.``. Raises RequestError."""
    longest = max(map(len, hostname.split(".")))
    if len(hostname) > MAX_HOSTNAME or longest > MAX_LABEL:
        raise RequestError(
            detail=f"the hostname is too long: at most {MAX_HOSTNAME} characters, "
            f"{MAX_LABEL} between dots"
        )
    for char in hostname:
        if not (char.isascii() and (char.isalnum() or char in "-.")):
            raise RequestError(detail=f"hostname: {hostname} contains invalid character: {char!r}")


def announced_bytes(request: CreateVmRequest) -> int:
    """Bytes that come behind a request."""
    total = request.image_data_size + request.user_data_size
    if request.secondary_volumes_data:
        total += sum(volume.size for volume in request.secondary_volumes)
    return total


def format_asked(request: CreateVmRequest) -> DiskFormat | None:
    """How an image that is sent or named by its URL holds its disk; None: see what it is.

    That is looked at only for a client that asks for it, as ours does. What upstream's sends is
    taken as upstream takes it, qcow2 if the root volume's Format says so and else byte for byte: a
    raw disk may be a guest's own, saved and restored, with any header that the guest has written.
    """
    asked = request.image_format if isinstance(request, OwnCreateVmRequest) else ""
    if asked:
        return None if asked == "auto" else DiskFormat(asked)
    volumes = request.vm_info.volumes
    qcow2 = bool(volumes) and volumes[0].format is VolumeFormat.QCOW2
    return DiskFormat.QCOW2 if qcow2 else DiskFormat.RAW


def _check_image(request: CreateVmRequest) -> None:
    """An image that is none of the image server's: upstream's order of precedence.

    Raises RequestError or NoImageError.
    """
    info = request.vm_info
    asked = request.image_format if isinstance(request, OwnCreateVmRequest) else ""
    if asked not in IMAGE_FORMATS:
        known = ", ".join(IMAGE_FORMATS[1:])
        raise RequestError(detail=f"there is no image format {asked!r}: there are {known}")
    if not request.image_data_size and not info.image_url:
        if not request.minimum_free_bytes:
            raise NoImageError
        if request.minimum_free_bytes > MAX_DISK:
            raise RequestError(
                detail=f"an empty root of {request.minimum_free_bytes} bytes: at most {MAX_DISK}"
            )
    if not request.image_data_size and info.image_url:
        parse_image_url(info.image_url)
    if info.volumes and info.volumes[0].size > MAX_DISK:
        raise RequestError(detail=f"a root of {info.volumes[0].size} bytes: at most {MAX_DISK}")
    if request.overlay_files or request.overlay_directories:
        raise RequestError(
            detail="overlay files go only over an image of the image server: leave them out"
        )


def _check_built(request: CreateVmRequest) -> None:
    """Refuse what this version does not do, and say what it does."""
    info = request.vm_info
    if not info.image_name:
        _check_image(request)
    if request.secondary_volumes:
        raise NotSupportedError(asked="a secondary volume", instead="ask for the root volume alone")
    if any(volume.type is not VolumeType.PERSISTENT for volume in info.volumes):
        raise NotSupportedError(asked="a volume in memory", instead="use a persistent one")
    if info.architecture_type not in (ArchitectureType.AUTO, ArchitectureType.AMD64):
        raise NotSupportedError(
            asked=f"architecture {info.architecture_type.text}", instead="use auto or amd64"
        )
    if info.virtualiser_image_name:
        raise NotSupportedError(asked="a custom virtualiser", instead="use this machine's QEMU")
    if request.enable_netboot:
        raise NotSupportedError(asked="booting from the network", instead="name an image")
    check_supported(info)
