"""From a VM's record to the machine that runs it: what it boots, on which chipset.

============  =========  ========  ==========================================================
machine type  kernel     PVH       result
============  =========  ========  ==========================================================
auto          beside     yes       microvm, booted straight into the kernel; not with UEFI
auto, q35     beside     any       q35, booted straight into the kernel
auto, q35     none                 q35, by the boot loader in the root volume
============  =========  ========  ==========================================================

A network interface of several queues, or a console, makes it a q35.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallstack.hypervisor.errors import NotSupportedError
from smallstack.hypervisor.firmware import find_uefi, own_variables
from smallstack.hypervisor.roots import INITRD, KERNEL, label_of
from smallstack.hypervisor.store import AgentRecord, root_index
from smallstack.hypervisor.wiring import Nic
from smallstack.machine.cgroup import CpuGroup, CpuGroups
from smallstack.machine.kernel import is_pvh, takes_timer_rate
from smallstack.machine.process import START_LIMIT
from smallstack.machine.spec import MICROVM_SLOTS, DiskSpec, Display, MachineSpec, NicSpec, Verdict
from smallstack.network.metadata.routes import NOCLOUD
from smallstack.proto.enums import (
    ConsoleType,
    FirmwareType,
    MachineType,
    VolumeFormat,
    VolumeInterface,
)
from smallstack.proto.vm import LocalVmInfo, VmInfo

APPLIANCE_INIT = "/sbin/init"
SERIAL = f"ds=nocloud;dsmode=net;s=http://169.254.169.254{NOCLOUD}/"
"""The serial number of a general guest: tells cloud-init where it finds its data. Without
``dsmode`` versions before 23 find them there, and then take them for a disk's."""
_OWN_SLOTS = 2
Interface = Literal["virtio", "ide", "nvme"]
_INTERFACES: dict[VolumeInterface, Interface] = {
    VolumeInterface.VIRTIO: "virtio",
    VolumeInterface.IDE: "ide",
    VolumeInterface.NVME: "nvme",
}
_DISPLAYS: dict[ConsoleType, Display] = {
    ConsoleType.NONE: "none",
    ConsoleType.DUMMY: "dummy",
    ConsoleType.VNC: "vnc",
}


@dataclass(frozen=True)
class Emulator:
    """How this agent runs QEMU: the program, the user (None: the agent's own), the accelerator."""

    program: str
    verdict: Verdict
    uid: int | None
    gid: int | None
    processors: int
    start_limit: float = START_LIMIT
    """Seconds until a QEMU whose monitor is silent is killed."""
    groups: CpuGroups | None = None
    """Where machines get their share of the processors; None: nowhere."""
    own_users: bool = False
    """Whether ``uid`` and ``gid`` are the first of many, one for each VM by its slot."""

    def user(self, slot: int) -> tuple[int | None, int | None]:
        """Uid and gid of the VM with that slot."""
        if not self.own_users or self.uid is None or self.gid is None:
            return self.uid, self.gid
        return self.uid + slot, self.gid + slot

    def cpu_group(self, info: VmInfo) -> CpuGroup | None:
        """The control group of a VM."""
        if self.groups is None:
            return None
        return self.groups.group(info.address.ip_address, info.milli_cpus, info.cpu_priority)


def check_supported(info: VmInfo) -> None:
    """Raises NotSupportedError or NoFirmwareError for a machine that this agent cannot make."""
    if info.firmware_type is FirmwareType.UEFI:
        find_uefi()
    if info.machine_type not in (MachineType.AUTO, MachineType.Q35):
        raise NotSupportedError(
            asked=f"machine type {info.machine_type.text}", instead="use auto or q35"
        )
    for volume in info.volumes:
        if volume.interface not in _INTERFACES:
            raise NotSupportedError(
                asked=f"volume interface {volume.interface.text}",
                instead="use virtio, ide or nvme",
            )


def processors(info: VmInfo) -> int:
    """How many processors a guest sees: as many as its milliCPUs need, or more if it asks."""
    return max(-(-info.milli_cpus // 1000), info.virtual_cpus, 1)


def machine_spec(
    record: LocalVmInfo,
    agent: AgentRecord,
    directory: Path,
    nics: Sequence[Nic],
    emulator: Emulator,
) -> MachineSpec:
    """The machine of a VM. Blocks: it looks at the kernel, and makes a UEFI's file of variables.

    Raises NotSupportedError, NoFirmwareError, OSError.
    """
    info = record.vm_info
    check_supported(info)
    disks = _disks(record, agent)
    kernel, initrd = _boot_files(record)
    uid, gid = emulator.user(agent.slot)
    uefi = find_uefi() if info.firmware_type is FirmwareType.UEFI else None
    microvm = (
        info.machine_type is MachineType.AUTO
        and uefi is None
        and kernel is not None
        and all(disk.interface == "virtio" for disk in disks)
        and len(disks) + len(nics) + _OWN_SLOTS <= MICROVM_SLOTS
        and not any(nic.tap.more_fds for nic in nics)
        and info.console_type is ConsoleType.NONE
        and is_pvh(kernel)
    )
    return MachineSpec(
        name=info.address.ip_address,
        directory=directory,
        verdict=emulator.verdict,
        memory_mib=info.memory_in_mib,
        vcpus=min(processors(info), emulator.processors),
        machine_type="microvm" if microvm else "q35",
        kernel=kernel,
        initrd=initrd,
        timer_rate=microvm and kernel is not None and takes_timer_rate(kernel),
        kernel_args=kernel_arguments(info, microvm, initrd is not None, agent.root.init)
        if kernel
        else "",
        disks=tuple(disks),
        nics=tuple(
            NicSpec(
                mac=nic.address.mac_address,
                tap_fd=nic.tap.fd,
                more_tap_fds=nic.tap.more_fds,
                mtu=nic.tap.mtu,
                model="e1000" if info.disable_virtio else "virtio",
            )
            for nic in nics
        ),
        uid=uid,
        gid=gid,
        firmware=uefi.code if uefi else None,
        firmware_vars=own_variables(uefi, directory) if uefi else None,
        serial=SERIAL,
        display=_DISPLAYS[info.console_type],
        qemu=emulator.program,
        cpu=emulator.cpu_group(info),
    )


def kernel_arguments(info: VmInfo, microvm: bool, has_initrd: bool, init: str = "") -> str:
    """What a kernel is told, by a boot loader too; a microvm adds its own.

    Only an initrd can find a root by its label. ``init`` is what it starts, if not the usual.
    """
    if microvm and not has_initrd:
        words = [f"init={init or APPLIANCE_INIT} root=/dev/vda1 ro"]
    else:
        label = info.root_file_system_label or label_of(info.address.ip_address)
        root = f"LABEL={label}" if has_initrd else _root_device(info)
        words = [f"root={root} ro", "console=tty0 console=ttyS0,115200n8", "net.ifnames=0"]
        if init:
            words.append(f"init={init}")
    if info.extra_kernel_options:
        words.append(info.extra_kernel_options)
    return " ".join(words)


def _root_device(info: VmInfo) -> str:
    """What Linux calls the first partition of the first disk."""
    asked = info.volumes[0].interface if info.volumes else VolumeInterface.VIRTIO
    names = {"virtio": "vda1", "ide": "sda1", "nvme": "nvme0n1p1"}
    return "/dev/" + names[_interface(asked, info.disable_virtio)]


def _boot_files(record: LocalVmInfo) -> tuple[Path | None, Path | None]:
    root = Path(record.volume_locations[0].filename)
    kernel, initrd = root.with_name(KERNEL), root.with_name(INITRD)
    if not kernel.exists():
        return None, None
    return kernel, initrd if initrd.exists() else None


def _disks(record: LocalVmInfo, agent: AgentRecord) -> list[DiskSpec]:
    disks = []
    root = root_index(record)
    for index, (location, volume) in enumerate(
        zip(record.volume_locations, record.vm_info.volumes, strict=False)
    ):
        format_, backing = "qcow2" if volume.format is VolumeFormat.QCOW2 else "raw", None
        if index == root and agent.root.backing:
            format_, backing = agent.root.format, Path(agent.root.backing)
        disks.append(
            DiskSpec(
                path=Path(location.filename),
                format="qcow2" if format_ == "qcow2" else "raw",
                backing=backing,
                interface=_interface(volume.interface, record.vm_info.disable_virtio),
            )
        )
    return disks


def _interface(interface: VolumeInterface, disable_virtio: bool) -> Interface:
    if disable_virtio and interface is VolumeInterface.VIRTIO:
        return "ide"
    return _INTERFACES[interface]


def host_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
