"""A volume that is not what its VM's record says is told of, and never booted from."""

import os
import re
import struct
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import VolumeFileError
from smallstack.hypervisor.store import AgentRecord, Layer
from smallstack.hypervisor.volume_files import check_volume_files
from smallstack.proto.enums import VolumeFormat, VolumeType
from smallstack.proto.vm import LocalVmInfo, LocalVolume, VmInfo, Volume

SIZE = 1 << 20
QCOW2 = AgentRecord(root=Layer(format="qcow2", backing="/nonexistent/brick"))
RAW = AgentRecord()


def record(*volumes: tuple[Path, Volume]) -> LocalVmInfo:
    return LocalVmInfo(
        vm_info=VmInfo(volumes=[volume for _, volume in volumes]),
        volume_locations=[
            LocalVolume(directory_to_cleanup=str(path.parent), filename=str(path))
            for path, _ in volumes
        ],
    )


def sparse(path: Path, size: int = SIZE) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def qcow2(path: Path, size: int = SIZE, length: int = 65536 * 4) -> Path:
    header = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", 3, 0, 0, 16, size, 0, 1, 3 * 65536)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header)
    os.truncate(path, length)
    return path


def test_whole_ones(tmp_path: Path) -> None:
    root = sparse(tmp_path / "root")
    check_volume_files(record((root, Volume(size=SIZE))), RAW)
    overlay = qcow2(tmp_path / "vm" / "root")
    second = qcow2(tmp_path / "second", size=77)
    memory = Volume(size=SIZE, type=VolumeType.MEMORY)
    wanted = record(
        (overlay, Volume(size=SIZE)),
        (second, Volume(size=SIZE, format=VolumeFormat.QCOW2)),
        (tmp_path / "none", memory),
    )
    check_volume_files(wanted, QCOW2)
    # Only what is called root is a layer, wherever it stands.
    check_volume_files(
        record((root.rename(tmp_path / "root.1"), Volume(size=SIZE)), (overlay, Volume(size=SIZE))),
        QCOW2,
    )
    # What cannot be made again has to be there.
    lost = AgentRecord(root=Layer(format="qcow2", backing="/nonexistent/imported-1"))
    with pytest.raises(VolumeFileError, match=r"the imported image under it, .* is gone"):
        check_volume_files(wanted, lost)


@pytest.mark.parametrize(
    ("agent", "make", "detail"),
    [
        (RAW, lambda path: None, "No such file or directory"),
        (RAW, lambda path: sparse(path, SIZE - 512), f"has {SIZE - 512} bytes, .* says {SIZE}"),
        (RAW, lambda path: sparse(path, SIZE + 512), f"has {SIZE + 512} bytes"),
        (QCOW2, lambda path: None, "No such file or directory"),
        (QCOW2, lambda path: sparse(path, 0), "it is no qcow2 image"),
        (QCOW2, sparse, "it is no qcow2 image"),
        (QCOW2, lambda path: qcow2(path, length=65536), "it was cut off after 65536 bytes"),
        (QCOW2, lambda path: qcow2(path, size=77), f"a disk of 77 bytes, .* says {SIZE}"),
    ],
)
def test_damaged_ones(tmp_path: Path, agent: AgentRecord, make: object, detail: str) -> None:
    assert callable(make)
    path = tmp_path / "root"
    make(path)
    with pytest.raises(VolumeFileError, match=f"{re.escape(str(path))}.*{detail}"):
        check_volume_files(record((path, Volume(size=SIZE))), agent)


def test_files_and_volumes_do_not_match(tmp_path: Path) -> None:
    wanted = record((sparse(tmp_path / "root"), Volume(size=SIZE)))
    wanted.vm_info.volumes = []
    with pytest.raises(VolumeFileError, match="1 files are named for 0 volumes"):
        check_volume_files(wanted, RAW)
