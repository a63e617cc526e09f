"""Debian 12 with systemd and cloud-init, booted in every way, until its SSH lets a key in.

Minutes long: `./dev test -m debian` runs it, the whole test command boots smaller guests the same
ways (test_boot_loader.py).
"""

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import pytest

from bench.debian import debian_root
from smallstack.proto.enums import FirmwareType, MachineType
from tests.integration.cloud import SECOND, Cloud
from tests.integration.test_disk_images import own_request
from tests.volumes.disks import run

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.debian, pytest.mark.timeout(1200)]
WAYS: Final[dict[str, dict[str, Any]]] = {
    "bios": {"skip_bootloader": False},
    "uefi": {"skip_bootloader": False, "firmware_type": FirmwareType.UEFI},
    "kernel": {"skip_bootloader": True},
}
CLOUD_INIT_IS_DONE: Final = b" finished at "


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key of SSH, its public one beside it."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.mark.parametrize("way", WAYS)
async def test_reaches_ssh(cloud: Cloud, key: Path, way: str) -> None:
    await cloud.add_image("debian", debian_root())
    public = key.with_name("key.pub").read_text().strip()
    start = time.monotonic()
    made = await cloud.create(
        image_name="debian",
        machine_type=MachineType.Q35,
        memory_in_mib=1024,
        milli_cpus=1000,
        virtual_cpus=2,
        minimum_free_bytes=256 << 20,
        dhcp_timeout=600 * SECOND,
        hostname=f"debian-{way}",
        user_data=f"#cloud-config\nssh_authorized_keys: [{public}]\n".encode(),
        **WAYS[way],
    )
    acknowledged = time.monotonic() - start
    assert not made.dhcp_timed_out
    console = await console_until(cloud, made.ip_address, CLOUD_INIT_IS_DONE)
    ready = time.monotonic() - start
    assert "Datasource DataSourceNoCloudNet" in console, console
    said = await ssh(key, made.ip_address, "hostname; cat /proc/cmdline; ls -d /sys/firmware/*")
    assert said.split()[0] == f"debian-{way}"
    assert ("/sys/firmware/efi" in said) == (way == "uefi")
    assert ("BOOT_IMAGE=" in said) == (way != "kernel")
    phases = {p.name: round(p.duration_nanoseconds / 1e6, 1) for p in made.timeline}
    print(f"\n{way}: DHCP ACK {acknowledged:.1f} s, cloud-init done {ready:.1f} s, ms: {phases}")


async def test_an_imported_disk_reaches_ssh(cloud: Cloud, key: Path, tmp_path: Path) -> None:
    """A whole Debian, as somebody else would hand it on: compressed qcow2, booted as it is."""
    await cloud.add_image("debian", debian_root())
    source = await cloud.create(
        image_name="debian",
        minimum_free_bytes=256 << 20,
        skip_bootloader=False,
        do_not_start=True,
    )
    root = cloud.state / "volumes" / source.ip_address / "root"
    disk = tmp_path / "debian.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", "-c", root, disk)
    await cloud.destroy(source.ip_address)
    public = key.with_name("key.pub").read_text().strip()
    wanted = own_request(
        memory_in_mib=1024,
        milli_cpus=1000,
        virtual_cpus=2,
        hostname="debian-imported",
    )
    wanted.dhcp_timeout = 600 * SECOND
    user_data = f"#cloud-config\nssh_authorized_keys: [{public}]\n".encode()
    async with cloud.client() as client:
        async for reply in client.create_vm(wanted, disk, user_data):
            made = reply
        await client.acknowledge_vm(made.ip_address)
    assert not made.dhcp_timed_out
    console = await console_until(cloud, made.ip_address, CLOUD_INIT_IS_DONE)
    assert "Datasource DataSourceNoCloudNet" in console, console
    said = await ssh(key, made.ip_address, "hostname; cat /proc/cmdline")
    assert said.split()[0] == "debian-imported"
    assert "BOOT_IMAGE=" in said
    phases = {p.name: round(p.duration_nanoseconds / 1e6, 1) for p in made.timeline}
    print(f"\nimported: ms: {phases}")


async def console_until(cloud: Cloud, ip: str, words: bytes) -> str:
    """All that the console said up to the line with these words."""
    async with cloud.client() as client, client.connect_serial(ip) as port:
        seen = b""
        while words not in seen or not seen.endswith(b"\n"):
            data = await port.read_some()
            assert data, seen
            seen += data
    return seen.decode(errors="replace")


async def ssh(key: Path, ip: str, command: str) -> str:
    """What a command says in the guest, run as the user that cloud-init has made."""
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={key}.hosts", "BatchMode=yes"]
    words = ["ssh", "-i", str(key), *(f"-o{option}" for option in options), f"debian@{ip}", command]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
