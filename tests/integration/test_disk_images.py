"""VMs from disks that others made: sent or fetched, imported once, booted by their own loader."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from smallstack.proto.enums import FirmwareType, VolumeFormat
from smallstack.proto.hypervisor.create import CreateVmResponse, OwnCreateVmRequest
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.brick import write_disk
from smallstack.volumes.grub_config import grub_config
from smallstack.volumes.partition import scheme_of
from tests.integration.cloud import Cloud, request
from tests.integration.test_boot_loader import END
from tests.volumes.disks import run
from tests.volumes.guest import build_kernel
from tests.volumes.trees import Objects, scan

pytestmark = [pytest.mark.root, pytest.mark.qemu]
MIB = 1 << 20
SIZE = 32 * MIB
WORDS = "of a disk that others made"
MakeDisk = Callable[[FirmwareType], Path]


def own_request(**changes: Any) -> OwnCreateVmRequest:
    """A VM from a disk image, whose format is told from its content unless it is named."""
    image_format = changes.pop("image_format", "auto")
    made = request(image_name="", dhcp_timeout=0, **changes)
    fields = {name: getattr(made, name) for name in made.__struct_fields__}
    return OwnCreateVmRequest(image_format=image_format, **fields)


@pytest.fixture
def make_disk(tmp_path: Path) -> MakeDisk:
    """Makes a raw disk with a boot loader, and a kernel that says what it was given."""
    tree = tmp_path / "tree"
    (tree / "boot" / "grub").mkdir(parents=True)
    build_kernel(tree / "boot" / "vmlinuz-1")
    (tree / "boot" / "grub" / "grub.cfg").write_bytes(grub_config(b"/boot/vmlinuz-1", None, WORDS))

    def make(firmware: FirmwareType) -> Path:
        objects = Objects(tmp_path / f"objects-{firmware.text}")
        path = tmp_path / f"disk-{firmware.text}.raw"
        size = SIZE + (firmware is FirmwareType.UEFI) * 256 * MIB
        loader = BootLoaders(tmp_path / "loaders").get(scheme_of(size, firmware))
        write_disk(path, scan(tree, objects), objects, size, bytes(20), firmware, loader)
        return path

    return make


class Web:
    """A web server of the test's own, in the cloud's network; counts the requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        self.hold: asyncio.Event | None = None

    async def answer(self, asked: web.Request) -> web.StreamResponse:
        self.asked.append(f"{asked.method} {asked.path}")
        if self.hold is not None:
            await self.hold.wait()
        return web.FileResponse(self.directory / asked.match_info["name"])


@pytest.fixture
async def server(cloud: Cloud, tmp_path: Path) -> AsyncIterator[Web]:
    made = Web(tmp_path / "web")
    made.directory.mkdir()
    app = web.Application()
    app.router.add_get("/{name}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 8080).start()
    yield made
    await runner.cleanup()


async def create(
    cloud: Cloud, wanted: OwnCreateVmRequest, image: Path | None = None
) -> CreateVmResponse:
    async with cloud.client() as client:
        async for reply in client.create_vm(wanted, image):
            last = reply
        await client.acknowledge_vm(last.ip_address)
    return last


async def said(cloud: Cloud, ip: str) -> str:
    """What a guest says until its last word."""
    async with cloud.client() as client, client.connect_serial(ip) as port:
        seen = b""
        while END not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
    return seen.decode(errors="replace").replace("\r", "")


def bricks(cloud: Cloud) -> list[str]:
    """The bricks of disks that others made, and whatever else is beside them."""
    found = (cloud.state / "volumes" / "bricks").iterdir()
    return sorted(path.name for path in found if not path.name.endswith(".note"))


async def test_boots(cloud: Cloud, make_disk: MakeDisk, server: Web) -> None:
    """Raw and qcow2 sent, VMDK and VDI by URL, compressed too; by SeaBIOS and by OVMF."""
    disk = make_disk(FirmwareType.BIOS)
    run("qemu-img", "convert", "-O", "qcow2", "-c", disk, server.directory / "disk.qcow2")
    run("qemu-img", "convert", "-O", "vmdk", disk, server.directory / "disk.vmdk")
    run("qemu-img", "convert", "-O", "vdi", disk, server.directory / "disk.vdi")
    run("zstd", "-q", server.directory / "disk.vdi")
    uefi = make_disk(FirmwareType.UEFI)
    for image, url, firmware in (
        (disk, "", FirmwareType.BIOS),
        (server.directory / "disk.qcow2", "", FirmwareType.BIOS),
        (None, "disk.vmdk", FirmwareType.BIOS),
        (None, "disk.vdi.zst", FirmwareType.BIOS),
        (uefi, "", FirmwareType.UEFI),
    ):
        address = f"http://localhost:8080/{url}" if url else ""
        made = await create(cloud, own_request(image_url=address, firmware_type=firmware), image)
        assert f"up: BOOT_IMAGE=/boot/vmlinuz-1 {WORDS}\n" in await said(cloud, made.ip_address)
        async with cloud.client() as client:
            info = await client.get_vm_info(made.ip_address)
            assert (info.image_name, info.image_url) == ("", address)
            (volume,) = info.volumes
            assert (volume.size, volume.format) == (
                (uefi if firmware is FirmwareType.UEFI else disk).stat().st_size,
                VolumeFormat.RAW,
            )
        await cloud.destroy(made.ip_address)
    assert len(bricks(cloud)) == 5
