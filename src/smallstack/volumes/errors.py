"""What can go wrong with volumes; each class's docstring is its message."""

from smallstack.telemetry.errors import SmallStackError


class VolumeError(SmallStackError):
    """{detail}"""


class TreeInvalidError(VolumeError):
    """the image's tree cannot be written: {path!r}: {detail}"""


class XattrsTooLargeError(VolumeError):
    """the extended attributes of {path!r} do not fit into one 4096-byte block: drop some of them"""


class RootTooSmallError(VolumeError):
    """the image needs {needed} bytes, the root file-system has {size}: ask for more free bytes"""


class RootSizeError(VolumeError):
    """a root of {size} bytes cannot be made: {detail}"""


class RootTooLargeError(VolumeError):
    """root file-system too large"""


class TooManyInodesError(VolumeError):
    """the image needs {needed} inodes, {size} bytes of root hold {have}: ask for more free bytes"""


class ObjectError(VolumeError):
    """object {hash} of {path!r}: {detail}"""


class ObjectUnreadableError(ObjectError):
    """object {hash} of {path!r} cannot be read: {detail}"""


class CorruptObjectError(ObjectError):
    """object {hash} of {path!r} is corrupt ({detail}): dropped, it has to be fetched again"""


class VolumeWriteError(VolumeError):
    """cannot write volume {path}: {detail}"""


class BootLoaderError(VolumeError):
    """cannot make a boot loader: {detail}"""


class BootLoaderMissingError(BootLoaderError):
    """cannot make a boot loader: {missing} is not there; install grub-common, grub-pc-bin and
    grub-efi-amd64-bin, or set SkipBootloader"""


class LayerError(VolumeError):
    """cannot make a layer over {brick}: {detail}"""


class LayerFullError(LayerError):
    """the root of {brick} has no room left for the overlay: {detail}"""


class LayerPathError(LayerError):
    """overlay path {path!r}: {detail}"""


class DiskImageError(VolumeError):
    """image {name} cannot be a VM's disk: {detail}"""


class ConverterMissingError(VolumeError):
    """image {name} cannot be converted: {program} is not there; install qemu-utils and
    util-linux"""


class ResizeError(VolumeError):
    """volume {name} cannot be resized: {detail}"""
