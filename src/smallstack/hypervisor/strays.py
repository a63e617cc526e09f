"""What a crash in the middle of a change of volumes leaves in a VM's volume directories."""

import logging
import os
import re
from pathlib import Path
from typing import Final

from smallstack.hypervisor.store import ROOT, Layer, snapshot_name
from smallstack.proto.enums import VolumeFormat
from smallstack.proto.vm import LocalVmInfo

_log = logging.getLogger("smallstack.hypervisor")
_STRAY: Final = re.compile(r"(root|secondary-volume)(\.\d+)?(~|\.snapshot(:.*)?~+)?")


def remove_strays(record: LocalVmInfo, layer: Layer) -> None:
    """Remove what a crash has left of a change: files with volumes' names that no volume has, and
    what a raw volume was to become. Blocks. Raises OSError.

    Where a volume's file is missing nothing is removed: then more is wrong than a crash explains.
    """
    paths = [Path(location.filename) for location in record.volume_locations]
    if not all(path.is_file() for path in paths):
        return
    # By what they are, not by how the record spells them: a volume must never be taken for none.
    known = {_identity(path) for path in paths}
    for place in {path.parent for path in paths}:
        if place.name != record.vm_info.address.ip_address:
            continue
        for path in place.iterdir():
            if _STRAY.fullmatch(path.name) and _identity(path) not in known:
                _log.warning("removing %s: no volume of the VM", path)
                path.unlink()
    for volume, path in zip(record.vm_info.volumes, paths, strict=False):
        layered = path.name == ROOT and bool(layer.backing)
        if volume.format is VolumeFormat.RAW and not layered:
            _cut(path, volume.size)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _cut(path: Path, size: int) -> None:
    """Take away what a volume was extended by, if nothing is there."""
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size <= size:
            return
        try:
            os.lseek(file.fileno(), size, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            file.truncate(size)


def scan_snapshots(record: LocalVmInfo) -> list[dict[str, int]]:
    """Of each volume, bytes by name of the snapshots that are beside it. Blocks. Raises OSError."""
    found = []
    for location in record.volume_locations:
        volume = Path(location.filename)
        start = snapshot_name(volume.name, "")
        snapshots = {}
        if volume.parent.is_dir():
            for path in sorted(volume.parent.iterdir()):
                rest = path.name.removeprefix(start)
                if path.name.startswith(start) and rest[:1] in {"", ":"} and "~" not in rest:
                    snapshots[rest[1:]] = path.stat().st_size
        found.append(snapshots)
    return found
