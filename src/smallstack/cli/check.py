"""``smallstack check``: what this machine has, what it lacks, and the remedy for each."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from smallstack.cli.output import emit_rows, format_option

PORTS = {6971: "image server", 6976: "hypervisor"}
MINIMUM_MEMORY_MIB = 512
MINIMUM_SPACE_MIB = 2048
MIB = 2**20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``ok``, ``note`` (works without) or ``lacks``, and what to do."""

    what: str
    verdict: str
    detail: str
    remedy: str = ""


@click.command("check")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/hypervisor"),
    show_default=True,
    help="where the Hypervisor would keep its VMs",
)
@format_option()
def command(state_dir: Path, output: str) -> None:
    """Check accelerator, devices, packages, memory, space and ports; exit 1 if anything lacks."""
    findings = list(look(state_dir))
    rows = [f.__dict__ for f in findings]
    emit_rows(rows, output, ("what", "verdict", "detail", "remedy"))
    sys.exit(any(f.verdict == "lacks" for f in findings))


def look(state_dir: Path) -> Iterator[Finding]:
    """Every finding, cheapest first."""
    yield root()
    yield program("QEMU", "qemu-system-x86_64", "qemu-system-x86", "--version")
    yield program("ip", "ip", "iproute2", "-V")
    yield program("unshare", "unshare", "util-linux", "--version")
    yield boot_loader()
    yield converter()
    yield from (guarded(check) for check in (tun, bridge_rules))
    yield accelerator()
    yield memory()
    yield space(state_dir)
    yield from (port(number, name) for number, name in PORTS.items())


def guarded(check: Callable[[], Finding]) -> Finding:
    """What needs root cannot be tried without: say so instead."""
    if os.geteuid() != 0:
        return Finding(
            check.__name__.replace("_", " "), "lacks", "not tried without root", "run as root"
        )
    return check()


def root() -> Finding:
    """Root is needed for bridges, taps, namespaces and for giving QEMU another uid."""
    if os.geteuid() == 0:
        return Finding("root", "ok", "uid 0")
    return Finding(
        "root",
        "lacks",
        "bridges, taps, namespaces and QEMU's own uid need root; "
        "image server, imagetool and vm-control do not",
        "run as root",
    )


def program(what: str, name: str, package: str, version: str) -> Finding:
    """A program on the PATH that runs, with the first line of what it says of itself."""
    path = shutil.which(name)
    if path is None:
        return Finding(what, "lacks", f"{name} is not on the PATH", f"apt-get install {package}")
    done = subprocess.run([path, version], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    if done.returncode or not lines:
        return Finding(
            what, "lacks", f"{path} does not run", f"apt-get install --reinstall {package}"
        )
    return Finding(what, "ok", lines[0])


def boot_loader() -> Finding:
    """What VMs that are booted by GRUB or UEFI need."""
    from smallstack.hypervisor.errors import NoFirmwareError
    from smallstack.hypervisor.firmware import find_uefi
    from smallstack.volumes.bootloader import GRUB_MODULES

    packages = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
    missing = [name for place, name in packages.items() if not (GRUB_MODULES / place).exists()]
    if shutil.which("grub-mkimage") is None:
        missing.insert(0, "grub-common")
    try:
        find_uefi()
    except NoFirmwareError:
        missing.append("ovmf")
    if not missing:
        return Finding("boot loader", "ok", f"GRUB in {GRUB_MODULES}, and OVMF")
    return Finding(
        "boot loader",
        "note",
        "kernels are booted directly; not by GRUB or UEFI",
        f"apt-get install {' '.join(missing)}",
    )


def converter() -> Finding:
    """What VMDK and VDI disks are converted by."""
    found = program("disk images", "qemu-img", "qemu-utils", "--version")
    if found.verdict == "ok":
        return found
    detail = "raw and qcow2 can be imported; not VMDK and VDI"
    return Finding(found.what, "note", detail, found.remedy)


def tun() -> Finding:
    """A tap device can be made: opened, in a namespace of its own so that nothing shows here."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(
            "tun",
            "lacks",
            f"/dev/net/tun: {error.strerror}",
            "modprobe tun; in a chroot: mknod /dev/net/tun c 10 200",
        )
    return Finding("tun", "ok", "/dev/net/tun opens")


def bridge_rules() -> Finding:
    """nftables has the bridge family with what the guard needs; tried in a fresh namespace."""
    script = (
        "add table bridge probe; add chain bridge probe c { type filter hook prerouting "
        "priority -300; }; add rule bridge probe c ether daddr set 02:00:00:00:00:01"
    )
    for name, package in (("unshare", "util-linux"), ("nft", "nftables")):
        if shutil.which(name) is None:
            return Finding(
                "nftables", "lacks", f"{name} is not on the PATH", f"apt-get install {package}"
            )
    done = subprocess.run(
        ["unshare", "--net", "nft", script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or "unshare or nft is missing").splitlines()
        return Finding(
            "nftables", "lacks", lines[0], "modprobe nft_meta_bridge, or apt-get install nftables"
        )
    return Finding("nftables", "ok", "bridge family, ether daddr set")


def accelerator() -> Finding:
    """Which accelerator *auto* takes, and why."""
    from smallstack.machine.accelerator import probe

    with tempfile.TemporaryDirectory() as fresh:  # tried anew, not remembered
        verdict = asyncio.run(probe("auto", Path(fresh)))
    if verdict.accelerator == "kvm":
        return Finding("accelerator", "ok", f"kvm: {verdict.reason}")
    return Finding(
        "accelerator",
        "note",
        f"tcg (software emulation): {verdict.reason}",
        "works, only slower; KVM needs hardware virtualisation",
    )


def memory() -> Finding:
    """What guests could have now."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            mib = int(line.split()[1]) // 1024
            if mib >= MINIMUM_MEMORY_MIB:
                return Finding("memory", "ok", f"{mib} MiB available")
            return Finding(
                "memory",
                "lacks",
                f"{mib} MiB available",
                f"free some: a small VM and the daemons want {MINIMUM_MEMORY_MIB} MiB",
            )
    return Finding("memory", "lacks", "/proc/meminfo tells nothing", "mount -t proc proc /proc")


def space(state_dir: Path) -> Finding:
    """Free space where volumes would lie."""
    place = next(p for p in (state_dir, *state_dir.parents) if p.exists())
    free = shutil.disk_usage(place).free // MIB
    if free >= MINIMUM_SPACE_MIB:
        return Finding("space", "ok", f"{free} MiB free at {place}")
    return Finding(
        "space",
        "lacks",
        f"{free} MiB free at {place}",
        f"free some, or give --state-dir elsewhere: {MINIMUM_SPACE_MIB} MiB are wanted",
    )


def port(number: int, name: str) -> Finding:
    """Whether the daemon's port can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", number))
        except OSError as error:
            return Finding(
                f"port {number}",
                "note",
                f"{name}: {error.strerror}",
                "it may be ours already: systemctl status; else --port elsewhere",
            )
    return Finding(f"port {number}", "ok", f"free for the {name}")
