"""Argument vectors, word for word: what is not measured here must at least be what was meant."""

import json
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from smallstack.machine.command import check, command_line, descriptors, kernel_arguments
from smallstack.machine.errors import SpecError
from smallstack.machine.spec import DiskSpec, MachineSpec, NicSpec
from tests.machine.conftest import KVM, NOBODY, TCG

MAC = "52:54:c6:33:64:02"
APPLIANCE = MachineSpec(
    name="198.51.100.2",
    directory=Path("/vms/198.51.100.2"),
    verdict=TCG,
    memory_mib=128,
    kernel=Path("/boot/vmlinux"),
    kernel_args="init=/sbin/init root=/dev/vda1 rw",
    disks=(DiskSpec(path=Path("/vms/root"), format="qcow2", backing=Path("/bricks/1")),),
    nics=(NicSpec(mac=MAC, tap_fd=77),),
    uid=NOBODY,
    gid=NOBODY,
)
GENERAL = replace(
    APPLIANCE,
    machine_type="q35",
    vcpus=2,
    memory_mib=2048,
    kernel=None,
    kernel_args="",
    disks=(
        DiskSpec(path=Path("/vms/root")),
        DiskSpec(path=Path("/vms/data"), format="qcow2", interface="nvme"),
        DiskSpec(path=Path("/vms/old"), interface="ide"),
        DiskSpec(path=Path("/vms/tools"), read_only=True),
    ),
    uuid="8b0f8d3c-2f5f-4d0c-9d6f-2d6c9f9e0001",
)


def line(spec: MachineSpec) -> list[str]:
    return command_line(spec, descriptors(spec))


def options(arguments: list[str], name: str) -> list[str]:
    return [value for option, value in pairwise(arguments) if option == name]


def test_an_appliance_under_software_emulation() -> None:
    assert line(APPLIANCE) == [
        "qemu-system-x86_64",
        *("-name", "guest=198.51.100.2"),
        "-no-user-config",
        "-nodefaults",
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-msg", "timestamp=on"),
        *("-display", "none"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "Nehalem-v1,+rdrand"),
        *("-m", "128M"),
        *("-smp", "cpus=1"),
        *("-chardev", "socket,id=serial0,fd=4,server=on,wait=on"),
        *("-serial", "chardev:serial0"),
        *("-chardev", "socket,id=monitor,fd=3,server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-kernel", "/proc/self/fd/6"),
        "-append",
        "init=/sbin/init root=/dev/vda1 rw console=ttyS0 quiet 8250.nr_uarts=1 panic=-1 reboot=t"
        " mitigations=off no_timer_check tsc=reliable random.trust_cpu=on tsc_early_khz=2600000"
        " nolapic_timer",
        *("-add-fd", "fd=7,set=7"),
        *("-add-fd", "fd=8,set=8"),
        "-blockdev",
        '{"driver":"qcow2","node-name":"disk0","read-only":false,'
        '"file":{"driver":"file","filename":"/dev/fdset/7"},'
        '"backing":{"driver":"raw","read-only":true,'
        '"file":{"driver":"file","filename":"/dev/fdset/8"}}}',
        *("-netdev", "tap,id=net0,fd=9"),
        *("-machine", "microvm,acpi=off,pcie=off,x-option-roms=off"),
        "-no-reboot",
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-chardev", "socket,id=agent0,fd=5,server=on,wait=on"),
        *("-device", "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.2"),
        *("-device", f"virtio-net-device,netdev=net0,mac={MAC},bus=virtio-mmio-bus.1"),
        *("-device", "virtio-serial-device,max_ports=2,bus=virtio-mmio-bus.0"),
        *("-device", "virtserialport,chardev=agent0,name=org.smallstack.agent.0"),
    ]


def test_a_kernel_that_takes_its_timer_rate() -> None:
    arguments = line(replace(APPLIANCE, timer_rate=True))
    assert options(arguments, "-machine") == [
        "microvm,acpi=off,pcie=off,x-option-roms=off,pic=off,pit=off"
    ]
    assert options(arguments, "-cpu") == ["Nehalem-v1,+rdrand,+arat"]
    (words,) = options(arguments, "-append")
    assert words.endswith("tsc_early_khz=2600000 lapic_timer_hz=1000000000 clearcpuid=112")
    unknown = replace(APPLIANCE, timer_rate=True, verdict=replace(APPLIANCE.verdict, tsc_khz=None))
    for spec in (unknown, replace(APPLIANCE, timer_rate=True, verdict=KVM)):
        text = " ".join(line(spec))
        assert "lapic_timer_hz" not in text, "a guest without a measure of time has no clock at all"
        assert "pit=off" not in text


def test_displays() -> None:
    """VNC listens nowhere; a picture for nobody is a VGA all the same."""
    general = replace(APPLIANCE, machine_type="q35")
    seen = line(replace(general, display="vnc"))
    assert options(seen, "-display") == ["vnc=none"]
    assert {"VGA", "usb-tablet"} <= set(options(seen, "-device"))
    dummy = line(replace(general, display="dummy"))
    assert options(dummy, "-display") == ["none"]
    assert "VGA" in options(dummy, "-device")
    assert "usb-tablet" not in options(dummy, "-device")
    assert "VGA" not in line(general)
    with pytest.raises(SpecError, match="microvm: no display; use q35"):
        line(replace(APPLIANCE, display="vnc"))


def test_an_appliance_under_kvm() -> None:
    arguments = line(replace(APPLIANCE, verdict=KVM))
    assert options(arguments, "-accel") == ["kvm"]
    assert options(arguments, "-cpu") == ["host"]
    assert options(arguments, "-append") == [
        "init=/sbin/init root=/dev/vda1 rw console=ttyS0 quiet 8250.nr_uarts=1 panic=-1 reboot=t"
    ]
    assert options(arguments, "-device") == [
        "virtio-blk-device,drive=disk0,bus=virtio-mmio-bus.3",
        f"virtio-net-device,netdev=net0,mac={MAC},bus=virtio-mmio-bus.2",
        "virtio-serial-device,max_ports=2,bus=virtio-mmio-bus.1",
        "virtio-rng-device,rng=rng0,bus=virtio-mmio-bus.0",
        "virtserialport,chardev=agent0,name=org.smallstack.agent.0",
    ]
    assert options(arguments, "-object") == ["rng-builtin,id=rng0"]


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_a_general_guest(accelerator: str) -> None:
    spec = replace(GENERAL, verdict=TCG if accelerator == "tcg" else KVM)
    arguments = line(spec)
    assert "-no-reboot" not in arguments, "a reset stays inside the process"
    assert "-kernel" not in arguments
    assert "-append" not in arguments
    assert options(arguments, "-machine") == ["q35"]
    assert options(arguments, "-accel") == ["tcg,thread=multi" if accelerator == "tcg" else "kvm"]
    assert options(arguments, "-smp") == ["cpus=2"]
    assert options(arguments, "-uuid") == [GENERAL.uuid]
    assert options(arguments, "-smbios") == ["type=1,product=SmallStack"]
    assert options(arguments, "-device") == [
        "virtio-blk-pci,disable-legacy=on,drive=disk0,bootindex=1",
        "nvme,serial=disk1,drive=disk1,bootindex=2",
        "ide-hd,drive=disk2,bootindex=3",
        "virtio-blk-pci,disable-legacy=on,drive=disk3,bootindex=4",
        f"virtio-net-pci,disable-legacy=on,packed=on,netdev=net0,mac={MAC}",
        "virtio-rng-pci,rng=rng0,disable-legacy=on",
        "pvpanic",
    ]
    nodes = [json.loads(node) for node in options(arguments, "-blockdev")]
    assert [(node["driver"], node["node-name"], node["read-only"]) for node in nodes] == [
        ("raw", "disk0", False),
        ("qcow2", "disk1", False),
        ("raw", "disk2", False),
        ("raw", "disk3", True),
    ]
    assert nodes[1]["backing"] is None


def test_a_general_guest_with_its_own_kernel() -> None:
    spec = replace(
        GENERAL, kernel=Path("/k"), initrd=Path("/i"), kernel_args="root=LABEL=rootfs@c6336402 ro"
    )
    arguments = line(spec)
    assert options(arguments, "-kernel") == ["/proc/self/fd/5"]
    assert options(arguments, "-initrd") == ["/proc/self/fd/6"]
    assert options(arguments, "-append") == ["root=LABEL=rootfs@c6336402 ro"]


def test_firmware() -> None:
    arguments = line(replace(GENERAL, firmware=Path("/OVMF.fd")))
    assert options(arguments, "-machine") == ["q35,pflash0=firmware"]
    node = json.loads(options(arguments, "-blockdev")[-1])
    assert node["driver"] == "raw"
    assert node["node-name"] == "firmware"
    assert node["read-only"] is True
    spec = replace(GENERAL, firmware=Path("/OVMF.fd"), firmware_vars=Path("/vm/vars.fd"))
    arguments, fds = line(spec), descriptors(spec)
    assert options(arguments, "-machine") == ["q35,pflash0=firmware,pflash1=firmware_vars"]
    variables = json.loads(options(arguments, "-blockdev")[-1])
    assert variables == {
        "driver": "raw",
        "node-name": "firmware_vars",
        "read-only": False,
        "file": {"driver": "file", "filename": f"/dev/fdset/{fds['firmware_vars']}"},
    }


def test_serial_number() -> None:
    assert options(line(GENERAL), "-smbios") == ["type=1,product=SmallStack"]
    arguments = line(replace(GENERAL, serial="ds=nocloud;s=http://x/,y"))
    assert options(arguments, "-smbios") == [
        "type=1,product=SmallStack,serial=ds=nocloud;s=http://x/,,y"
    ]


def test_queues_vhost_and_mtu() -> None:
    nic = NicSpec(mac=MAC, tap_fd=20, more_tap_fds=(21,), vhost_fds=(30, 31), mtu=9000)
    spec = replace(GENERAL, disks=GENERAL.disks[:1], nics=(nic, NicSpec(mac=MAC, tap_fd=22)))
    fds = descriptors(spec)
    assert fds == {
        "monitor": 3,
        "serial0": 4,
        "disk0": 5,
        "net0.0": 6,
        "net0.1": 7,
        "vhost0.0": 8,
        "vhost0.1": 9,
        "net1.0": 10,
    }
    arguments = line(spec)
    assert options(arguments, "-netdev") == [
        "tap,id=net0,fds=6:7,vhost=on,vhostfds=8:9",
        "tap,id=net1,fd=10",
    ]
    assert (
        f"virtio-net-pci,disable-legacy=on,packed=on,netdev=net0,mac={MAC}"
        ",mq=on,vectors=6,host_mtu=9000"
    ) in options(arguments, "-device")


def test_e1000() -> None:
    spec = replace(GENERAL, nics=(NicSpec(mac=MAC, tap_fd=20, model="e1000"),))
    assert f"e1000,netdev=net0,mac={MAC}" in options(line(spec), "-device")


def test_kernel_arguments_of_two_processors() -> None:
    text = kernel_arguments(replace(APPLIANCE, vcpus=2))
    assert "nolapic_timer" not in text, "two processors need timers of their own"
    assert "tsc_early_khz=2600000" in text


def test_kernel_arguments_without_a_known_frequency() -> None:
    spec = replace(APPLIANCE, verdict=replace(TCG, tsc_khz=None))
    assert "tsc_early_khz" not in kernel_arguments(spec)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a,b"}, "the name may hold"),
        ({"name": ""}, "the name may hold"),
        ({"memory_mib": 0}, "0 MiB and 1 CPUs"),
        ({"vcpus": 0}, "128 MiB and 0 CPUs"),
        ({"uid": 0}, "may not run as root"),
        ({"gid": 0}, "may not run as root"),
        ({"uid": None}, "uid and gid go together"),
        ({"kernel": None}, "only a kernel can be booted; use q35"),
        ({"kernel": None, "initrd": Path("/i")}, "an initrd without a kernel"),
        ({"firmware": Path("/f")}, "no UEFI firmware"),
        ({"firmware_vars": Path("/v")}, "variables without a firmware"),
        ({"disks": (DiskSpec(path=Path("/d"), interface="ide"),)}, "virtio disks only"),
        (
            {"disks": (DiskSpec(path=Path("/d"), interface="ide", read_only=True),)},
            "an IDE disk cannot be read-only",
        ),
        ({"nics": (NicSpec(mac="x", tap_fd=1),)}, "'x' is not a MAC address"),
        ({"nics": (NicSpec(mac=MAC + ",x=y", tap_fd=1),)}, "is not a MAC address"),
        ({"nics": (NicSpec(mac=MAC, tap_fd=1, model="e1000"),)}, "one queue only"),
        ({"nics": (NicSpec(mac=MAC, tap_fd=1, more_tap_fds=(2,)),)}, "one queue only"),
        ({"nics": (NicSpec(mac=MAC, tap_fd=1, vhost_fds=(2, 3)),)}, "as many vhost"),
        ({"disks": (DiskSpec(path=Path("/d")),) * 6}, "at most 6 disks and network"),
        ({"machine_type": "q35", "kernel": None, "disks": ()}, "neither a kernel nor a disk"),
    ],
)
def test_what_cannot_be(changes: dict[str, object], text: str) -> None:
    spec = replace(APPLIANCE, **changes)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=re.escape(text)) as raised:
        check(spec)
    assert str(raised.value).startswith("machine ")
    with pytest.raises(SpecError):
        command_line(spec, {})


def test_as_many_devices_as_there_are_slots() -> None:
    spec = replace(APPLIANCE, disks=(DiskSpec(path=Path("/d")),) * 5)
    slots = re.findall(r"bus=virtio-mmio-bus\.(\d)", " ".join(line(spec)))
    assert slots == ["6", "5", "4", "3", "2", "1", "0"]


def _full(spec: MachineSpec) -> MachineSpec:
    files = {"kernel": Path("/k"), "firmware": Path("/f"), "firmware_vars": Path("/v")}
    return replace(spec, **files)  # type: ignore[arg-type]


def test_descriptors_and_command_line_agree() -> None:
    for spec in (APPLIANCE, GENERAL, _full(GENERAL)):
        fds = descriptors(spec)
        assert list(fds.values()) == list(range(3, 3 + len(fds)))
        text = " ".join(line(spec))
        for number in fds.values():
            assert re.search(rf"(fds?=|/fd/|fdset/|set=){number}\b", text)


@pytest.mark.qemu
def test_the_cpu_models_are_known_to_qemu() -> None:
    said = subprocess.run(
        ["qemu-system-x86_64", "-cpu", "help"], check=True, capture_output=True, text=True
    ).stdout
    assert "Nehalem-v1" in said
    assert "rdrand" in said
