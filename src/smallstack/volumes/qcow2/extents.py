"""What differs between two disks, or since a bitmap was begun, from tables alone.

Two disks are any two of: a snapshot, the present, an overlay, the file below it, raw or qcow2. They
must have been opened by the same `Files`, so that what they share is known to be the same. A disk
whose clusters are written in place shows no change in its tables: its moments are told apart by a
snapshot, an overlay, or a persistent bitmap that marks what was written.
"""

from smallstack.volumes.qcow2 import compare
from smallstack.volumes.qcow2.chain import Disk, find_bitmap
from smallstack.volumes.qcow2.compare import Extents
from smallstack.volumes.qcow2.errors import BitmapNotFoundError


def differing(old: Disk, new: Disk) -> Extents:
    """The extents of ``new`` that may differ from ``old``; where ``old`` ends it counts as zeros.

    No extent is missing; one that is there can hold the same bytes in another cluster. Time
    follows the L2 tables that differ. Raises the classes of ``errors`` for damaged images.
    """
    return compare.differing(old.view, new.view)


def since(disk: Disk, bitmap: str) -> Extents:
    """The extents that the bitmap ``bitmap`` of the topmost image marks as written."""
    if disk.image is None:
        raise BitmapNotFoundError(path=disk.path, name=bitmap, names="none: it is raw")
    return compare.dirty(disk.view, find_bitmap(disk.image, bitmap))
