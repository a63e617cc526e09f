"""What a machine consists of, as data. Nothing here opens, checks or starts anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smallstack.machine.cgroup import CpuGroup

Accelerator = Literal["kvm", "tcg"]
MachineType = Literal["microvm", "q35"]
Display = Literal["none", "dummy", "vnc"]

# Virtio-mmio slots of QEMU's microvm; the agent's port and the entropy source take two of them.
MICROVM_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which accelerator guests get, and why, in one line.

    ``tsc_khz`` is the frequency of the host's time-stamp counter, None where it is not known: an
    emulated guest sees that counter, and is told its frequency instead of measuring it.
    """

    accelerator: Accelerator
    reason: str
    tsc_khz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """One disk. ``backing`` is the raw brick under a qcow2 layer; both are opened by the agent."""

    path: Path
    format: Literal["raw", "qcow2"] = "raw"
    backing: Path | None = None
    read_only: bool = False
    interface: Literal["virtio", "ide", "nvme"] = "virtio"


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    """One network interface on an open tap; the descriptors stay the caller's to close.

    ``vhost_fds``: one open /dev/vhost-net per queue, or none to let QEMU itself move the packets.
    """

    mac: str
    tap_fd: int
    more_tap_fds: tuple[int, ...] = ()
    vhost_fds: tuple[int, ...] = ()
    mtu: int = 1500
    model: Literal["virtio", "e1000"] = "virtio"

    @property
    def tap_fds(self) -> tuple[int, ...]:
        """One descriptor per queue."""
        return (self.tap_fd, *self.more_tap_fds)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One machine.

    ``name`` is the VM's primary IP address. ``directory`` is the VM's own, root's alone: QEMU gets
    everything in it as descriptors. ``kernel`` boots directly (microvm: an uncompressed PVH
    kernel); without one the first disk's boot loader does. ``kernel_args`` are the caller's; what
    machine type and accelerator want is added. ``uid``, ``gid``: QEMU's; None keeps the agent's,
    which must then not be root's. ``timer_rate``: the kernel takes its timer's rate
    (`kernel.takes_timer_rate`). ``firmware`` is the code of a UEFI, ``firmware_vars`` the file of
    its own in which it keeps its variables. ``serial`` is the serial number that the guest finds in
    its SMBIOS tables (q35). ``display``: a VGA that nobody sees (dummy), or that is seen by the VNC
    clients that the agent brings (vnc); q35. ``cpu`` is its control group; None leaves it in the
    agent's.
    """

    name: str
    directory: Path
    verdict: Verdict
    memory_mib: int
    vcpus: int = 1
    machine_type: MachineType = "microvm"
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_args: str = ""
    timer_rate: bool = False
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    uid: int | None = None
    gid: int | None = None
    uuid: str | None = None
    firmware: Path | None = None
    firmware_vars: Path | None = None
    serial: str = ""
    display: Display = "none"
    qemu: str = "qemu-system-x86_64"
    cpu: CpuGroup | None = None
