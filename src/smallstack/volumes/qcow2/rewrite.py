"""Makes whole new files of disks: flattened, so that nothing is below them, or compacted.

The new file appears under its name only when it is complete and synced.
"""

import os
from pathlib import Path
from typing import Final

from smallstack.volumes.qcow2 import write
from smallstack.volumes.qcow2.chain import Disk, Files
from smallstack.volumes.qcow2.errors import DiskUnsupportedError, DiskUnwritableError
from smallstack.volumes.qcow2.image import Qcow2
from smallstack.volumes.qcow2.place import writable, write_whole
from smallstack.volumes.qcow2.write import Builder

_STEP: Final = 64 << 20
LEVELS: Final = {"none": 0, "zlib": 6, "zstd": 3}
"""The level of each packing when none is given."""


def flatten(
    disk: Disk,
    path: Path,
    *,
    disk_format: str = "qcow2",
    cluster_size: int = 65536,
    packing: str = "none",
    level: int | None = None,
) -> None:
    """Write what ``disk`` shows as one file without anything below it.

    ``disk_format`` raw (sparse) or qcow2; ``packing``, one of write.PACKINGS, is for qcow2. The
    file must not be one of the disk's own. Raises the classes of ``errors``.
    """
    if any(path.exists() and path.samefile(layer.path) for layer in disk.layers):
        raise DiskUnwritableError(path=path, detail="it is what would be read")

    def fill(fd: int) -> None:
        offset = 0
        if disk_format == "raw":
            os.ftruncate(fd, disk.size)
            while offset < disk.size:
                offset = write.copy_raw(fd, disk.view, offset, _STEP)
            return
        chosen = LEVELS[packing] if level is None else level
        try:
            builder = Builder(fd, disk.view, cluster_size.bit_length() - 1, packing, chosen)
            while offset < disk.size:
                offset = builder.copy(offset, _STEP)
            builder.finish()
        except ValueError as error:
            raise DiskUnwritableError.wrap(error, path=path) from None

    write_whole(path, fill)


def compact(path: Path, out: Path | None = None) -> tuple[int, int]:
    """Write the qcow2 image at ``path`` anew without what it does not need; see qcow2_compact.h.

    In its place, or at ``out``. Returns the bytes that the files take, before and after. Raises the
    classes of ``errors``.
    """
    with Files() as files, writable(path) as fd:
        if files.open(path).image is None:
            raise DiskUnsupportedError(path=path, detail="it is not a qcow2 image")
        image = Qcow2(fd, str(path))
        target = path if out is None else out
        if out is not None and out.exists() and out.samefile(path):
            raise DiskUnwritableError(path=out, detail="it is what would be read")
        before = os.fstat(fd).st_blocks * 512
        write_whole(target, lambda new: write.compact(image, new))
        return before, target.stat().st_blocks * 512
