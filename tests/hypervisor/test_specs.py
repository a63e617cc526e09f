"""From a record to a machine."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallstack.hypervisor.errors import NoFirmwareError, NotSupportedError
from smallstack.hypervisor.firmware import find_uefi
from smallstack.hypervisor.specs import Emulator, kernel_arguments, machine_spec, processors
from smallstack.hypervisor.store import AgentRecord, Layer
from smallstack.hypervisor.wiring import Nic, addresses_of
from smallstack.machine.command import check
from smallstack.machine.spec import Verdict
from smallstack.network.tap import Tap
from smallstack.proto.enums import FirmwareType, MachineType, VolumeFormat, VolumeInterface
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume, VmInfo, Volume

IP = "198.51.100.2"
ADDRESS = Address(ip_address=IP, mac_address="52:54:c6:33:64:02")
EMULATOR = Emulator("qemu", Verdict("tcg", "asked for"), 65534, 65534, 2)


def pvh_kernel() -> bytes:
    """The least ELF file with a PVH note."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x1000000)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return header + segment + note


def nic(address: Address = ADDRESS) -> Nic:
    return Nic(address, Tap("ss-test", -1, "br0", 1400))


def make(directory: Path, kernel: bytes | None, initrd: bool = False, **info: Any) -> LocalVmInfo:
    if kernel is not None:
        (directory / "kernel").write_bytes(kernel)
    if initrd:
        (directory / "initrd").write_bytes(b"i")
    fields: dict[str, Any] = {
        "address": ADDRESS,
        "memory_in_mib": 256,
        "milli_cpus": 250,
        "volumes": [Volume(size=1 << 24)],
        **info,
    }
    volumes = fields["volumes"]
    names = ["root", "secondary-volume.0"]
    return LocalVmInfo(
        vm_info=VmInfo(**fields),
        volume_locations=[
            LocalVolume(directory_to_cleanup=str(directory), filename=str(directory / name))
            for name in names[: len(volumes)]
        ],
    )


def test_an_appliance(tmp_path: Path) -> None:
    record = make(tmp_path, pvh_kernel(), extra_kernel_options="quiet loglevel=3")
    agent = AgentRecord(root=Layer(format="qcow2", backing="/v/bricks/abc"))
    spec = machine_spec(record, agent, Path("/state/vm"), [nic()], EMULATOR)
    check(spec)
    assert (spec.name, spec.machine_type, spec.memory_mib, spec.vcpus) == (IP, "microvm", 256, 1)
    assert spec.kernel == tmp_path / "kernel"
    assert spec.kernel_args == "init=/sbin/init root=/dev/vda1 ro quiet loglevel=3"
    container = AgentRecord(root=Layer(init="/.smallstack/init"))
    spec = machine_spec(record, container, Path("/state/vm"), [nic()], EMULATOR)
    assert spec.kernel_args == "init=/.smallstack/init root=/dev/vda1 ro quiet loglevel=3"
    spec = machine_spec(make(tmp_path, b"MZ"), container, Path("/state/vm"), [nic()], EMULATOR)
    assert spec.kernel_args.endswith(" init=/.smallstack/init")
    spec = machine_spec(record, agent, Path("/state/vm"), [nic()], EMULATOR)
    assert [(d.path.name, d.format, d.backing) for d in spec.disks] == [
        ("root", "qcow2", Path("/v/bricks/abc"))
    ]
    assert [(n.mac, n.mtu) for n in spec.nics] == [(ADDRESS.mac_address, 1400)]
    assert (spec.uid, spec.gid, spec.qemu) == (65534, 65534, "qemu")
    own = replace(EMULATOR, uid=2000, gid=3000, own_users=True)
    spec = machine_spec(record, AgentRecord(slot=7), tmp_path, (), own)
    assert (spec.uid, spec.gid) == (2007, 3007)


@pytest.mark.parametrize(
    ("kernel", "info", "machine"),
    [
        (pvh_kernel(), {}, "microvm"),
        (b"MZ not an ELF file", {}, "q35"),
        (pvh_kernel(), {"machine_type": MachineType.Q35}, "q35"),
        (pvh_kernel(), {"disable_virtio": True}, "q35"),
        (pvh_kernel(), {"volumes": [Volume(interface=VolumeInterface.NVME)]}, "q35"),
        (None, {}, "q35"),
        (pvh_kernel(), {"firmware_type": FirmwareType.UEFI}, "q35"),
        (None, {"firmware_type": FirmwareType.UEFI}, "q35"),
    ],
)
def test_which_machine(
    tmp_path: Path, kernel: bytes | None, info: dict[str, Any], machine: str
) -> None:
    spec = machine_spec(make(tmp_path, kernel, **info), AgentRecord(), tmp_path, [nic()], EMULATOR)
    check(spec)
    assert spec.machine_type == machine
    assert (spec.kernel is None) == (kernel is None)
    assert spec.serial == "ds=nocloud;dsmode=net;s=http://169.254.169.254/nocloud/"


def test_uefi(tmp_path: Path) -> None:
    record = make(tmp_path, None, firmware_type=FirmwareType.UEFI)
    spec = machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)
    assert spec.firmware == find_uefi().code
    own = spec.firmware_vars
    assert own == tmp_path / "uefi-variables.fd"
    assert own.stat().st_mode & 0o777 == 0o600
    assert own.read_bytes() == find_uefi().variables.read_bytes()
    own.write_bytes(b"changed by the guest")
    machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)
    assert own.read_bytes() == b"changed by the guest"


def test_without_uefi(tmp_path: Path) -> None:
    with pytest.raises(NoFirmwareError, match=f"no UEFI firmware in {tmp_path}: install ovmf"):
        find_uefi(tmp_path)
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"):
        (tmp_path / name).touch()
    assert find_uefi(tmp_path).code.name == "OVMF_CODE.fd"
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"):
        (tmp_path / name).touch()
    assert find_uefi(tmp_path).variables.name == "OVMF_VARS_4M.fd"


def test_too_many_devices_for_a_microvm(tmp_path: Path) -> None:
    nics = [nic() for _ in range(6)]
    spec = machine_spec(make(tmp_path, pvh_kernel()), AgentRecord(), tmp_path, nics, EMULATOR)
    check(spec)
    assert spec.machine_type == "q35"


def test_kernel_arguments() -> None:
    info = VmInfo(address=ADDRESS)
    label = "rootfs@c6336402"
    assert kernel_arguments(info, microvm=False, has_initrd=True) == (
        f"root=LABEL={label} ro console=tty0 console=ttyS0,115200n8 net.ifnames=0"
    )
    assert "root=/dev/vda1 ro" in kernel_arguments(info, microvm=False, has_initrd=False)
    for interface, device in ((VolumeInterface.IDE, "sda1"), (VolumeInterface.NVME, "nvme0n1p1")):
        other = VmInfo(address=ADDRESS, volumes=[Volume(interface=interface)])
        words = kernel_arguments(other, microvm=False, has_initrd=False)
        assert f"root=/dev/{device} ro" in words
    assert f"root=LABEL={label}" in kernel_arguments(info, microvm=True, has_initrd=True)
    info.root_file_system_label = "rootfs@0a000001"
    assert "LABEL=rootfs@0a000001 " in kernel_arguments(info, microvm=False, has_initrd=True)


def test_an_initrd_is_used(tmp_path: Path) -> None:
    record = make(tmp_path, b"MZ", initrd=True)
    spec = machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)
    assert spec.initrd == tmp_path / "initrd"


def test_an_adopted_qcow2_root(tmp_path: Path) -> None:
    """Of an upstream agent: the record alone says what the file is."""
    record = make(tmp_path, None, volumes=[Volume(size=5, format=VolumeFormat.QCOW2), Volume()])
    spec = machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)
    assert [d.format for d in spec.disks] == ["qcow2", "raw"]


@pytest.mark.parametrize(
    ("milli", "virtual", "cpus"),
    [(10, 0, 1), (1000, 0, 1), (1001, 0, 2), (500, 2, 2), (9000, 0, 9)],
)
def test_processors(tmp_path: Path, milli: int, virtual: int, cpus: int) -> None:
    record = make(tmp_path, pvh_kernel(), milli_cpus=milli, virtual_cpus=virtual)
    assert processors(record.vm_info) == cpus
    spec = machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)
    assert spec.vcpus == min(cpus, 2)


def test_what_is_not_supported(tmp_path: Path) -> None:
    record = make(tmp_path, pvh_kernel(), machine_type=MachineType.PC)
    with pytest.raises(NotSupportedError, match="machine type pc is not supported yet"):
        machine_spec(record, AgentRecord(), tmp_path, [nic()], EMULATOR)


def test_addresses_with_their_subnets() -> None:
    second = Address(ip_address="203.0.113.9", mac_address="52:54:cb:00:71:09")
    info = VmInfo(
        address=ADDRESS, subnet_id="a", secondary_addresses=[second], secondary_subnet_ids=["b"]
    )
    assert addresses_of(info) == [(ADDRESS, "a"), (second, "b")]
