"""How large a root disk is: upstream's rule, so that sizes agree whoever unpacks an image."""

from typing import Final

from smallstack.proto.enums import FirmwareType
from smallstack.volumes.errors import RootTooLargeError
from smallstack.volumes.partition import EFI_SIZE, MIB, PARTITION_OFFSET

LEAST_ROUNDUP_POWER: Final = 24
_EFI_NEED: Final = EFI_SIZE + 2 * MIB


def root_size(
    usage: int,
    minimum_free_bytes: int,
    roundup_power: int,
    minimum_bytes: int = 0,
    firmware: FirmwareType = FirmwareType.DEFAULT,
) -> int:
    """Bytes of the whole disk for a tree that is estimated to use ``usage`` bytes.

    An eighth is added for the file system's own needs, then the free bytes asked for and the gap
    before the partition, for UEFI also its partition and tables; the sum is rounded up to a
    multiple of 2^max(roundup_power, 24). Raises RootTooLargeError when no free space is asked for
    and ``minimum_bytes`` does not exceed the need either: nothing could then be written in such a
    root.
    """
    root = usage + usage // 8
    if minimum_free_bytes < 1 and root >= minimum_bytes:
        raise RootTooLargeError
    root = max(root + minimum_free_bytes, minimum_bytes)
    tables = PARTITION_OFFSET + (_EFI_NEED if firmware is FirmwareType.UEFI else 0)
    return _round_up(root + tables, roundup_power)


def estimated_size(usage: int, minimum_free_bytes: int, roundup_power: int) -> int:
    """The size that is reserved before the image is unpacked: without the partition's gap."""
    return _round_up(usage + usage // 8 + minimum_free_bytes, roundup_power)


def _round_up(size: int, power: int) -> int:
    unit = 1 << max(power, LEAST_ROUNDUP_POWER)
    return -(-size // unit) * unit
