"""VMs from disks that others made: sent or fetched, imported once, booted by their own loader."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from smallstack.client.errors import ServiceError
from smallstack.proto.enums import FirmwareType, VolumeFormat
from smallstack.proto.hypervisor.create import CreateVmResponse, OwnCreateVmRequest
from smallstack.proto.vm import Volume
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.volumes.bootloader import BootLoaders
from smallstack.volumes.brick import write_disk
from smallstack.volumes.grub_config import grub_config
from smallstack.volumes.partition import scheme_of
from tests.integration.cloud import Cloud, request
from tests.integration.test_boot_loader import END
from tests.network.world import settled
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


async def test_one_transfer_for_many(cloud: Cloud, make_disk: MakeDisk, server: Web) -> None:
    """Three creates of one URL at once, then one more, and one of the same bytes as a file."""
    disk = make_disk(FirmwareType.BIOS)
    (server.directory / "disk").hardlink_to(disk)
    server.hold = asyncio.Event()
    wanted = {"image_url": "http://localhost:8080/disk", "do_not_start": True}
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(create(cloud, own_request(**wanted))) for _ in range(3)]
        while not server.asked:
            await asyncio.wait(waiting, timeout=0.01)
        server.hold.set()
    assert server.asked == ["GET /disk"]
    assert len(bricks(cloud)) == 1
    ips = [task.result().ip_address for task in waiting]
    await cloud.destroy(ips.pop())
    larger = own_request(do_not_start=True, volumes=[Volume(size=2 * SIZE + 1)])
    ips.append((await create(cloud, larger, disk)).ip_address)
    assert len(bricks(cloud)) == 1
    async with cloud.client() as client:
        infos = {info.address.ip_address: info for info in await client.get_vm_infos()}
        assert [infos[ip].volumes[0].size for ip in ips] == [SIZE, SIZE, 2 * SIZE + 512]
        # It boots from the larger disk after a restart of the agent, too.
        await cloud.stop_hypervisor()
        await cloud.start_hypervisor()
    async with cloud.client() as client:
        await client.start_vm(ips[-1])
        assert WORDS in await said(cloud, ips[-1])
        # Nothing it could be made from again is anywhere: that is told, and nothing is booted.
        (brick,) = [cloud.state / "volumes" / "bricks" / name for name in bricks(cloud)]
        brick.rename(brick.with_name("gone"))
        with pytest.raises(ServiceError, match=r"the imported image under it, .* is gone"):
            await client.start_vm(ips[0])
        brick.with_name("gone").rename(brick)
        await client.start_vm(ips[0])
        assert WORDS in await said(cloud, ips[0])


async def test_what_fails_leaves_nothing(cloud: Cloud, make_disk: MakeDisk, server: Web) -> None:
    """Refusals, an agent that is killed and a disk that fills up in the middle of an image."""
    disk = make_disk(FirmwareType.BIOS)
    half = server.directory / "half.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", disk, half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    before = cloud.look()
    for wanted, image, told in (
        (own_request(), half, "points after EOF"),
        (own_request(image_format="vdi"), disk, "it is no VDI image"),
        (own_request(image_url="http://localhost:8080/none"), None, "404 Not Found"),
        (own_request(image_url="http://localhost:1/"), None, "cannot get image"),
        (own_request(image_url="http://169.254.169.254/latest"), None, "a link-local one"),
        (own_request(image_url="file:///etc/passwd"), None, "see --local-images-directory"),
        (own_request(volumes=[Volume(size=1 << 60)]), disk, "not enough free space"),
    ):
        with pytest.raises(ServiceError, match=told) as caught:
            await create(cloud, wanted, image)
        assert "\n" not in str(caught.value)
        assert await cloud.states() == {}
    # The last one was imported before its size was found to be too much: that stays, as any brick.
    (made,) = bricks(cloud)
    (cloud.state / "volumes" / "bricks" / made).unlink()
    assert cloud.left(before) == ""
    # Refused while the client still sends: it hears of that at once.
    endless = server.directory / "endless"
    with endless.open("wb") as file:
        file.write(b"vhdxfile")
        file.truncate(4 << 30)
    with pytest.raises(ServiceError, match="VHDX"):
        await create(cloud, own_request(), endless)
    assert cloud.left(before) == ""
    # Killed in the middle of it.
    async with cloud.client() as client:
        with pytest.raises(ConnectionClosedError):
            async for _ in client.create_vm(own_request(image_format="raw"), endless):
                await asyncio.to_thread(settled, lambda: any(".~" in n for n in bricks(cloud)))
                await cloud.kill_hypervisor()
    await cloud.start_hypervisor()
    assert await cloud.states() == {}
    assert bricks(cloud) == []


@pytest.mark.parametrize("step", ["image", "settle"])
async def test_cut_short(bare_cloud: Cloud, make_disk: MakeDisk, step: str) -> None:
    """The agent dies inside a step: the create is undone, what is a brick by then is whole."""
    cloud = bare_cloud
    await cloud.start_hypervisor()
    await cloud.set_up(count=1)
    disk = make_disk(FirmwareType.BIOS)
    cloud.at("inside", step, "kill")
    with pytest.raises(ConnectionClosedError):
        await create(cloud, own_request(), disk)
    assert await cloud.died() == -9
    await cloud.start_hypervisor()
    assert await cloud.states() == {}
    assert cloud.qemu_pids() == []
    assert [name for name in bricks(cloud) if ".~" in name] == []
    made = await create(cloud, own_request(), disk)
    assert WORDS in await said(cloud, made.ip_address)
    (brick,) = bricks(cloud)
    assert (cloud.state / "volumes" / "bricks" / brick).read_bytes() == disk.read_bytes()


async def test_an_empty_root(cloud: Cloud) -> None:
    """Upstream's last choice: no image at all, so much room."""
    made = await create(cloud, own_request(minimum_free_bytes=MIB + 1, do_not_start=True))
    async with cloud.client() as client:
        (volume,) = (await client.get_vm_info(made.ip_address)).volumes
    assert volume.size == MIB + 512
    root = cloud.state / "volumes" / made.ip_address / "root"
    assert (root.stat().st_size, root.stat().st_blocks) == (MIB + 512, 0)
