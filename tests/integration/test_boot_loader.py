"""VMs booted by GRUB, on a BIOS and on UEFI, into a kernel that only says what it was given."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from smallstack.machine.process import launch
from smallstack.machine.spec import DiskSpec, MachineSpec, Verdict
from smallstack.proto.enums import FirmwareType, MachineType
from smallstack.proto.hypervisor.create import CreateVmResponse
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.brick import write_disk
from smallstack.volumes.grub_config import grub_config
from smallstack.volumes.partition import MBR_LIMIT, Scheme
from tests.integration.cloud import Cloud
from tests.volumes.guest import build_kernel
from tests.volumes.trees import Objects, scan

pytestmark = [pytest.mark.root, pytest.mark.qemu]
END = b"end of guest"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image with a kernel and an initrd, without a grub.cfg."""
    root = tmp_path / "tree"
    (root / "boot").mkdir(parents=True)
    (root / "etc").mkdir()
    build_kernel(root / "boot" / "vmlinuz-1")
    (root / "boot" / "initrd.img-1").write_bytes(b"the initrd\0")
    return root


async def said(cloud: Cloud, ip: str) -> str:
    """What a guest says until its last word."""
    async with cloud.client() as client, client.connect_serial(ip) as port:
        seen = b""
        while END not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
    return seen.decode(errors="replace").replace("\r", "")


@pytest.mark.parametrize("firmware", [FirmwareType.DEFAULT, FirmwareType.UEFI])
async def test_boots(cloud: Cloud, tree: Path, firmware: FirmwareType) -> None:
    await cloud.add_image("booted", tree)
    made = await create(cloud, firmware)
    assert {"unpack", "install boot loader"} <= {phase.name for phase in made.timeline}
    assert check(await said(cloud, made.ip_address), made.ip_address)
    async with cloud.client() as client:
        await client.stop_vm(made.ip_address)
        await client.start_vm(made.ip_address)
    assert check(await said(cloud, made.ip_address), made.ip_address)
    before = cloud.look()
    again = await create(cloud, firmware, do_not_start=True)
    names = {phase.name for phase in again.timeline}
    assert not {"make boot loader", "unpack", "install boot loader"} & names
    await cloud.destroy(again.ip_address)
    assert cloud.left(before) == ""


async def create(cloud: Cloud, firmware: FirmwareType, **changes: Any) -> CreateVmResponse:
    return await cloud.create(
        image_name="booted",
        skip_bootloader=False,
        firmware_type=firmware,
        machine_type=MachineType.Q35,
        dhcp_timeout=0,
        extra_kernel_options="of=ours",
        **changes,
    )


def check(text: str, ip: str) -> bool:
    """Whether a kernel was told what it should be, and got its initrd."""
    label = "rootfs@" + IPv4Address(ip).packed.hex()
    words = f"root=LABEL={label} ro console=tty0 console=ttyS0,115200n8 net.ifnames=0 of=ours"
    assert f"up: BOOT_IMAGE=/boot/vmlinuz-1 {words}\n" in text
    return "initrd: the initrd\n" in text


async def test_above_two_tebibytes(tree: Path, tmp_path: Path) -> None:
    """From a BIOS boot partition, on a disk with a GPT."""
    (tree / "boot" / "grub").mkdir()
    config = grub_config(b"/boot/vmlinuz-1", b"/boot/initrd.img-1", "root=LABEL=x")
    (tree / "boot" / "grub" / "grub.cfg").write_bytes(config)
    objects = Objects(tmp_path / "objects")
    fs = scan(tree, objects)
    disk = tmp_path / "disk"
    loader = BootLoaders(tmp_path / "loaders").get(Scheme.GPT)
    write_disk(disk, fs, objects, MBR_LIMIT + (1 << 24), bytes(20), FirmwareType.BIOS, loader)
    (tmp_path / "vm").mkdir()
    spec = MachineSpec(
        name="198.51.100.2",
        directory=tmp_path / "vm",
        verdict=Verdict("tcg", "a test"),
        memory_mib=128,
        machine_type="q35",
        disks=(DiskSpec(path=disk),),
        uid=65534,
        gid=65534,
    )
    machine = await launch(spec)
    try:
        async with machine.console.attach() as session:
            seen = b""
            while END not in seen:
                data = await session.read()
                assert data, seen
                seen += data
    finally:
        machine.kill()
        await machine.wait()
    assert b"up: BOOT_IMAGE=/boot/vmlinuz-1 root=LABEL=x\ninitrd: the initrd\n" in seen


async def test_whose_grub_config(cloud: Cloud, tree: Path) -> None:
    """The image's own comes before the agent's, the overlay's before both."""
    (tree / "boot" / "grub").mkdir()
    config = "linux /boot/vmlinuz-1 of the image\ninitrd /boot/initrd.img-1\nboot\n"
    (tree / "boot" / "grub" / "grub.cfg").write_text(config)
    await cloud.add_image("booted", tree)
    overlay = {"boot/grub/grub.cfg": b"linux /boot/vmlinuz-1 of the overlay\nboot\n"}
    for files, words in (({}, "of the image"), (overlay, "of the overlay")):
        made = await create(cloud, FirmwareType.BIOS, overlay_files=files)
        text = await said(cloud, made.ip_address)
        assert f"up: BOOT_IMAGE=/boot/vmlinuz-1 {words}\n" in text
