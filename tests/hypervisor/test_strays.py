"""What a start removes beside a VM's volumes, and what it does not."""

from pathlib import Path

from smallstack.hypervisor.store import Layer
from smallstack.hypervisor.strays import remove_strays
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume, VmInfo, Volume

IP = "198.51.100.2"


def record(place: Path, *names: str) -> LocalVmInfo:
    return LocalVmInfo(
        vm_info=VmInfo(
            address=Address(ip_address=IP, mac_address="52:54:c6:33:64:02"),
            volumes=[Volume(size=0) for _ in names],
        ),
        volume_locations=[
            LocalVolume(directory_to_cleanup=str(place), filename=str(place / name))
            for name in names
        ],
    )


def test_what_may_be_all_there_is_of_a_volume_stays(tmp_path: Path) -> None:
    place = tmp_path / IP
    place.mkdir()
    for name in ("root", "secondary-volume.0"):
        (place / name).touch()
    remove_strays(record(place, "root", "secondary-volume.1"), Layer())
    assert len(list(place.iterdir())) == 2
    remove_strays(record(place, "root"), Layer())
    assert [path.name for path in place.iterdir()] == ["root"]
