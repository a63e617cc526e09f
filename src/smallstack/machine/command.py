"""From a spec to QEMU's argument vector: a pure function.

Every file, socket and tap reaches QEMU as an inherited descriptor, so that it needs no access to
any directory of ours: ``descriptors(spec)`` says which, in which order, and ``command_line`` names
them by number.

Two machines:

``microvm``
    For kernels with a PVH entry. No PCI, no ACPI, no firmware to speak of: virtio-mmio devices at
    fixed slots, in the order disks, network, entropy, agent port. Runs with ``-no-reboot``: every
    reset ends the process, and the guest's word on its port says what the reset meant.
``q35``
    For everything else: PCI, ACPI, a boot loader or ``-kernel``. A reset stays inside the process.

Measured with the appliance under TCG (QEMU 7.2, 2 cores, interleaved boots, process made → init's
first word, medians of 20; the machine's noise is 5 %):

==========================================  =======================================================
exec → monitor answers                      28 ms, most of it the dynamic linker and page faults
exec → init's first word                    270 ms at best, 300 in the median
``pic=off``                                 6 % less, but then no guest has clock events, unless its
                                            kernel takes the LAPIC timer's rate
no ``tsc_early_khz tsc=reliable …``         25 % more
``-cpu max``                                5 % more
``qemu64`` or ``Nehalem-v1``                no difference; Nehalem has what x86-64-v2 programs need
virtio entropy device                       12 ms more of the guest's CPU; RDRAND instead
``thread=single``, ``tb-size`` 16 … 512     no difference; both stay at their defaults
SeaBIOS in place of qboot                   8 % more
legacy virtio-mmio                          2 % more
io_uring for disks                          2 % more
``rtc=off``                                 1.5 s more
==========================================  =======================================================

KVM's command line is right by construction and by its tests; it has not been measured.
"""

import json
import re
from collections.abc import Mapping, Sequence

from smallstack.machine.errors import SpecError
from smallstack.machine.spec import MICROVM_SLOTS, DiskSpec, MachineSpec, NicSpec

FIRST_DESCRIPTOR = 3
AGENT_PORT = "org.smallstack.agent.0"

_FILES = ("kernel", "initrd", "firmware", "firmware_vars")
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_RNG = ["-object", "rng-builtin,id=rng0"]
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_NAME = re.compile(r"[0-9A-Za-z_.:-]{1,100}")


def check(spec: MachineSpec) -> None:
    """Raise SpecError if no command line can be right for this spec."""

    def refuse(detail: str) -> SpecError:
        return SpecError(name=spec.name, detail=detail)

    if not _NAME.fullmatch(spec.name):
        raise refuse("the name may hold letters, digits and _ . : - only")
    if spec.memory_mib < 1 or spec.vcpus < 1:
        raise refuse(f"{spec.memory_mib} MiB and {spec.vcpus} CPUs: both must be at least 1")
    if spec.uid == 0 or spec.gid == 0:
        raise refuse("QEMU may not run as root: choose another uid and gid")
    if (spec.uid is None) != (spec.gid is None):
        raise refuse("uid and gid go together")
    if spec.initrd is not None and spec.kernel is None:
        raise refuse("an initrd without a kernel")
    if any(disk.read_only and disk.interface == "ide" for disk in spec.disks):
        raise refuse("an IDE disk cannot be read-only")
    for nic in spec.nics:
        if not _MAC.fullmatch(nic.mac):
            raise refuse(f"{nic.mac!r} is not a MAC address")
        if nic.vhost_fds and len(nic.vhost_fds) != len(nic.tap_fds):
            raise refuse("as many vhost descriptors as queues")
    if spec.firmware_vars is not None and spec.firmware is None:
        raise refuse("variables without a firmware")
    if spec.machine_type == "microvm":
        _check_microvm(spec)
    elif spec.kernel is None and not spec.disks:
        raise refuse("neither a kernel nor a disk to boot from")


def _check_microvm(spec: MachineSpec) -> None:
    def no(detail: str) -> SpecError:
        return SpecError(name=spec.name, detail=f"microvm: {detail}; use q35")

    if spec.kernel is None:
        raise no("only a kernel can be booted")
    if spec.firmware is not None:
        raise no("no UEFI firmware")
    if any(disk.interface != "virtio" for disk in spec.disks):
        raise no("virtio disks only")
    if any(nic.model != "virtio" or len(nic.tap_fds) > 1 for nic in spec.nics):
        raise no("virtio network with one queue only")
    if spec.display != "none":
        raise no("no display")
    if len(spec.disks) + len(spec.nics) + 2 > MICROVM_SLOTS:
        raise no(f"at most {MICROVM_SLOTS - 2} disks and network interfaces")


def descriptors(spec: MachineSpec) -> dict[str, int]:
    """What QEMU inherits: role to descriptor number, in the order of the numbers, from 3 on.

    Roles: ``monitor serial0 agent0`` (listening sockets), ``kernel initrd firmware
    firmware_vars``, ``diskN``, ``diskN.backing``, ``netN.Q`` and ``vhostN.Q``.
    """
    roles = ["monitor", "serial0"]
    if spec.machine_type == "microvm":
        roles.append("agent0")
    roles += [role for role in _FILES if getattr(spec, role) is not None]
    for index, disk in enumerate(spec.disks):
        roles.append(f"disk{index}")
        if disk.backing is not None:
            roles.append(f"disk{index}.backing")
    for index, nic in enumerate(spec.nics):
        roles += [f"net{index}.{queue}" for queue in range(len(nic.tap_fds))]
        roles += [f"vhost{index}.{queue}" for queue in range(len(nic.vhost_fds))]
    return {role: FIRST_DESCRIPTOR + number for number, role in enumerate(roles)}


def kernel_arguments(spec: MachineSpec) -> str:
    """The kernel's command line: the caller's words, then what this machine wants.

    A panic resets at once, because only a reset can be seen from outside; ``reboot=t`` resets a
    microvm by a triple fault, it has no other way. Under software emulation the guest is told the
    frequency of its time-stamp counter and trusts it (calibration costs 220 ms and hangs now and
    then), and keeps no mitigations: there is no speculation to mitigate. Without a LAPIC timer
    it ticks by the PIT, which only a single processor can; a kernel that takes the LAPIC timer's
    rate, which QEMU fixes at 1 GHz, needs neither, and sleeps longer. ``clearcpuid=112``
    (REP_GOOD): emulated, a string instruction is slower than a loop.
    """
    words = [spec.kernel_args] if spec.kernel_args else []
    if spec.machine_type == "microvm":
        words += ["console=ttyS0", "quiet", "8250.nr_uarts=1", "panic=-1", "reboot=t"]
        if spec.verdict.accelerator == "tcg":
            words += ["mitigations=off", "no_timer_check", "tsc=reliable"]
            words.append("random.trust_cpu=on")
            if spec.verdict.tsc_khz is not None:
                words.append(f"tsc_early_khz={spec.verdict.tsc_khz}")
            if _fixed_timer(spec):
                words += ["lapic_timer_hz=1000000000", "clearcpuid=112"]
            elif spec.vcpus == 1:
                words.append("nolapic_timer")
    return " ".join(words)


def command_line(spec: MachineSpec, fds: Mapping[str, int]) -> list[str]:
    """QEMU's whole argument vector; ``fds`` as `descriptors` gives it. Raises SpecError."""
    check(spec)
    arguments = [spec.qemu, "-name", f"guest={spec.name}", "-no-user-config", "-nodefaults"]
    arguments += ["-sandbox", _SANDBOX, "-msg", "timestamp=on", "-display", _display(spec)]
    arguments += _accelerator(spec)
    arguments += ["-m", f"{spec.memory_mib}M", "-smp", f"cpus={spec.vcpus}"]
    if spec.uuid is not None:
        arguments += ["-uuid", spec.uuid]
    # The agent connects before QEMU is started: waiting costs nothing and loses no first byte.
    arguments += [
        *_socket("serial0", fds["serial0"], wait=True),
        "-serial",
        "chardev:serial0",
    ]
    arguments += _socket("monitor", fds["monitor"], wait=False)
    arguments += ["-mon", "chardev=monitor,mode=control"]
    if spec.kernel is not None:
        arguments += ["-kernel", f"/proc/self/fd/{fds['kernel']}"]
        arguments += ["-append", kernel_arguments(spec)]
        if spec.initrd is not None:
            arguments += ["-initrd", f"/proc/self/fd/{fds['initrd']}"]
    for index, disk in enumerate(spec.disks):
        arguments += _disk_nodes(index, disk, fds)
    for index, nic in enumerate(spec.nics):
        arguments += _net_backend(index, nic, fds)
    return arguments + (_microvm(spec, fds) if spec.machine_type == "microvm" else _q35(spec, fds))


def _fixed_timer(spec: MachineSpec) -> bool:
    """Whether the guest lives by a LAPIC timer whose rate it is told; then PIT and PIC are off."""
    verdict = spec.verdict
    return (
        spec.timer_rate
        and spec.machine_type == "microvm"
        and verdict.accelerator == "tcg"
        and verdict.tsc_khz is not None
    )


def _display(spec: MachineSpec) -> str:
    # It listens nowhere: clients come by the monitor.
    return "vnc=none" if spec.display == "vnc" else "none"


def _accelerator(spec: MachineSpec) -> list[str]:
    if spec.verdict.accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # Without ARAT a kernel keeps the PIT beside its LAPIC timer.
    model = "Nehalem-v1,+rdrand" + (",+arat" if _fixed_timer(spec) else "")
    return ["-accel", "tcg,thread=multi", "-cpu", model]


def _socket(name: str, fd: int, *, wait: bool) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd},server=on,wait={'on' if wait else 'off'}"]


def _disk_nodes(index: int, disk: DiskSpec, fds: Mapping[str, int]) -> list[str]:
    arguments: list[str] = []

    def file_node(role: str) -> dict[str, object]:
        # Sets are numbered like their only member.
        arguments.extend(["-add-fd", f"fd={fds[role]},set={fds[role]}"])
        return {"driver": "file", "filename": f"/dev/fdset/{fds[role]}"}

    node: dict[str, object] = {
        "driver": disk.format,
        "node-name": f"disk{index}",
        "read-only": disk.read_only,
        "file": file_node(f"disk{index}"),
    }
    if disk.format == "qcow2":
        node["backing"] = None
        if disk.backing is not None:
            node["backing"] = {
                "driver": "raw",
                "read-only": True,
                "file": file_node(f"disk{index}.backing"),
            }
    return [*arguments, "-blockdev", json.dumps(node, separators=(",", ":"))]


def _net_backend(index: int, nic: NicSpec, fds: Mapping[str, int]) -> list[str]:
    def numbers(role: str, count: int) -> str:
        return ":".join(str(fds[f"{role}{index}.{queue}"]) for queue in range(count))

    queues = len(nic.tap_fds)
    several = "s" if queues > 1 else ""
    backend = f"tap,id=net{index},fd{several}={numbers('net', queues)}"
    if nic.vhost_fds:
        backend += f",vhost=on,vhostfd{several}={numbers('vhost', queues)}"
    return ["-netdev", backend]


def _microvm(spec: MachineSpec, fds: Mapping[str, int]) -> list[str]:
    devices = [f"virtio-blk-device,drive=disk{index}" for index in range(len(spec.disks))]
    devices += [
        f"virtio-net-device,netdev=net{index},mac={nic.mac}{_mtu(nic)}"
        for index, nic in enumerate(spec.nics)
    ]
    devices.append("virtio-serial-device,max_ports=2")
    legacy = ",pic=off,pit=off" if _fixed_timer(spec) else ""
    arguments = ["-machine", f"microvm,acpi=off,pcie=off,x-option-roms=off{legacy}", "-no-reboot"]
    arguments += ["-global", "virtio-mmio.force-legacy=false"]
    if spec.verdict.accelerator == "kvm":
        # Software emulation has an RDRAND of the host's own entropy; a device costs it 12 ms.
        devices.append("virtio-rng-device,rng=rng0")
        arguments += _RNG
    arguments += _socket("agent0", fds["agent0"], wait=True)
    # The guest finds the highest slot first: the first disk has to be its vda.
    for slot, device in zip(reversed(range(len(devices))), devices, strict=True):
        arguments += ["-device", f"{device},bus=virtio-mmio-bus.{slot}"]
    return [*arguments, "-device", f"virtserialport,chardev=agent0,name={AGENT_PORT}"]


def _q35(spec: MachineSpec, fds: Mapping[str, int]) -> list[str]:
    machine = "q35"
    arguments: list[str] = []
    for role, flash in (("firmware", "pflash0"), ("firmware_vars", "pflash1")):
        if getattr(spec, role) is None:
            continue
        machine += f",{flash}={role}"
        node = {
            "driver": "raw",
            "node-name": role,
            "read-only": role == "firmware",
            "file": {"driver": "file", "filename": f"/dev/fdset/{fds[role]}"},
        }
        arguments += ["-add-fd", f"fd={fds[role]},set={fds[role]}"]
        arguments += ["-blockdev", json.dumps(node, separators=(",", ":"))]
    arguments = ["-machine", machine, *arguments]
    serial = f",serial={spec.serial.replace(',', ',,')}" if spec.serial else ""
    arguments += ["-smbios", f"type=1,product=SmallStack{serial}"]
    for device in (*_q35_disks(spec.disks), *_q35_nics(spec.nics)):
        arguments += ["-device", device]
    if spec.display != "none":
        arguments += ["-device", "VGA"]
    if spec.display == "vnc":
        arguments += ["-device", "qemu-xhci", "-device", "usb-tablet"]
    # The panic device turns a guest's panic into an event; without it a panic is silence.
    arguments += [*_RNG, "-device", "virtio-rng-pci,rng=rng0,disable-legacy=on"]
    return [*arguments, "-device", "pvpanic"]


def _q35_disks(disks: Sequence[DiskSpec]) -> list[str]:
    devices = []
    for index, disk in enumerate(disks):
        device = {
            "virtio": "virtio-blk-pci,disable-legacy=on",
            "ide": "ide-hd",
            "nvme": f"nvme,serial=disk{index}",
        }[disk.interface]
        devices.append(f"{device},drive=disk{index},bootindex={index + 1}")
    return devices


def _q35_nics(nics: Sequence[NicSpec]) -> list[str]:
    devices = []
    for index, nic in enumerate(nics):
        end = f"netdev=net{index},mac={nic.mac}"
        if nic.model == "e1000":
            devices.append(f"e1000,{end}")
            continue
        queues = len(nic.tap_fds)
        many = f",mq=on,vectors={2 * queues + 2}" if queues > 1 else ""
        devices.append(f"virtio-net-pci,disable-legacy=on,packed=on,{end}{many}{_mtu(nic)}")
    return devices


def _mtu(nic: NicSpec) -> str:
    return "" if nic.mtu == 1500 else f",host_mtu={nic.mtu}"
