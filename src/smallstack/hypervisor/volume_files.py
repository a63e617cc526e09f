"""Whether the files of a VM's volumes are what its record says. Reads a header of each, no more.

qcow2: docs/interop/qcow2.txt of QEMU. A brick that is gone is no damage: it is made again,
unless it is a disk that was made elsewhere.
"""

import os
import struct
from pathlib import Path

from smallstack.hypervisor.errors import VolumeFileError
from smallstack.hypervisor.store import AgentRecord, root_index
from smallstack.proto.enums import VolumeFormat, VolumeType
from smallstack.proto.vm import LocalVmInfo
from smallstack.telemetry.errors import describe
from smallstack.volumes.brick import is_imported

_QCOW2 = struct.Struct(">4sIQIIQIIQ")
"""Magic, version, backing file's name and its length, cluster bits, size, encryption, L1 entries,
L1 offset."""
_MAGIC = b"QFI\xfb"


def check_volume_files(record: LocalVmInfo, agent: AgentRecord) -> None:
    """Blocks. Raises VolumeFileError for the first volume that is not there whole."""
    volumes, locations = record.vm_info.volumes, record.volume_locations
    if len(volumes) != len(locations):
        raise VolumeFileError(
            path=record.vm_info.address.ip_address,
            detail=f"{len(locations)} files are named for {len(volumes)} volumes",
        )
    root = root_index(record)
    for index, (volume, location) in enumerate(zip(volumes, locations, strict=True)):
        if volume.type is VolumeType.MEMORY:
            continue
        ours = index == root and agent.root.format == "qcow2"
        path = Path(location.filename)
        try:
            if ours or volume.format is VolumeFormat.QCOW2:
                _check_qcow2(path, volume.size if ours else None)
            elif (size := path.stat().st_size) != volume.size:
                raise VolumeFileError(
                    path=path, detail=f"it has {size} bytes, the VM's record says {volume.size}"
                )
        except OSError as error:
            raise VolumeFileError(path=path, detail=describe(error)) from error
    backing = Path(agent.root.backing)
    if root is not None and is_imported(backing) and not backing.exists():
        detail = f"the imported image under it, {backing}, is gone"
        raise VolumeFileError(path=locations[root].filename, detail=detail)


def _check_qcow2(path: Path, size: int | None) -> None:
    with path.open("rb") as file:
        header = file.read(_QCOW2.size)
        length = os.fstat(file.fileno()).st_size
    if len(header) < _QCOW2.size or not header.startswith(_MAGIC):
        raise VolumeFileError(path=path, detail="it is no qcow2 image")
    *_, found, _, entries, table = _QCOW2.unpack(header)
    if table + 8 * entries > length:
        raise VolumeFileError(path=path, detail=f"it was cut off after {length} bytes")
    if size not in {None, found}:
        raise VolumeFileError(
            path=path, detail=f"it is a disk of {found} bytes, the VM's record says {size}"
        )
