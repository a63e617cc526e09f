"""What the agent can refuse or fail at. The first words are upstream's; then what to do."""

from smallstack.telemetry.errors import SmallStackError


class HypervisorError(SmallStackError):
    """{detail}"""


# Who may do what.


class NoAccessError(HypervisorError):
    """no access to resource: neither you nor a group of yours own it"""

    denies = True


class NotLocalError(HypervisorError):
    """local connection required"""


class NoProviderError(HypervisorError):
    """no identity provider: start the hypervisor with --identity-provider URL"""


class NotAuthenticatedError(HypervisorError):
    """no authentication data"""


class NoVmError(HypervisorError):
    """no VM with IP address: {ip} found"""


class BlockedError(HypervisorError):
    """mutations blocked"""


class DisabledError(HypervisorError):
    """Hypervisor is disabled"""


class StateError(HypervisorError):
    """{text}"""


# What a request may ask for.


class RequestError(HypervisorError):
    """{detail}"""


class NotSupportedError(RequestError):
    """{asked} is not supported yet: {instead}"""


class SubnetTwiceError(RequestError):
    """subnet: {subnet} specified multiple times"""


class NoFirmwareError(RequestError):
    """no UEFI firmware in {directory}: install ovmf, or ask for BIOS"""


# Resources.


class CpuError(HypervisorError):
    """insufficient unallocated CPU: {asked} milliCPUs asked for, {left} of {total} are left;
    ask for fewer or destroy a VM"""


class UnallocatedMemoryError(HypervisorError):
    """insufficient unallocated memory: {asked} MiB asked for, {left} of {total} MiB are left;
    ask for less or destroy a VM"""


class AvailableMemoryError(HypervisorError):
    """insufficient available memory: {asked} MiB asked for, {left} MiB are free on this machine;
    ask for less or stop a VM"""


class SpaceError(HypervisorError):
    """not enough free space for {size} volume: {left} are usable; ask for less
    (MinimumFreeBytes), destroy a VM or name another directory by --volume-directories"""


class StorageIndexError(HypervisorError):
    """storage[{index}] does not have {size} free"""


class NoStorageError(HypervisorError):
    """no volume directories available"""


class DiskFullError(HypervisorError):
    """no space left on the disk of {path}: free some, or destroy a VM"""


class DiskError(HypervisorError):
    """cannot use {path}: {detail}"""


# Images.


class ImageServerError(HypervisorError):
    """error connecting to image server: {server}: {detail}"""


class NoImageError(HypervisorError):
    """no image specified: name an image of the image server, a URL or a file"""


class ImageMissingError(HypervisorError):
    """timeout getting image: {name!r} is not on {server}; see `imagetool list`"""


class EmptyDirectoryError(HypervisorError):
    """no images in directory: {name}"""


class ImageTreeError(HypervisorError):
    """image {name} cannot be a VM's root: {detail}"""


# Records.


class RecordError(HypervisorError):
    """cannot {action} {path}: {detail}"""


class VolumeFileError(HypervisorError):
    """volume {path} cannot be used: {detail}; put the file back, or destroy the VM"""


class VmExistsError(HypervisorError):
    """cannot make {path}: it is there already, and no VM of this agent has it; move it away"""


# Guests.


class CrashedError(HypervisorError):
    """VM {ip} crashed before it asked for an address by DHCP; the last on its console: {words}"""


class SubnetInUseError(HypervisorError):
    """cannot delete subnet: {subnet}: VM {ip} is in it; destroy the VM first"""


class ExternalLeaseError(HypervisorError):
    """cannot lease {ip}: {detail}"""
