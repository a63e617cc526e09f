"""Volumes of a stopped VM, changed by its owner at a real agent that is killed in between."""

import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.proto.vm import LocalVmInfo
from smallstack.srpc.json_coder import from_json
from tests.integration.cloud import Cloud

pytestmark = [pytest.mark.root]
MIB = 1 << 20
OFFSET = MIB
"""Where the root's partition begins."""


def record(cloud: Cloud, ip: str) -> LocalVmInfo:
    return from_json((cloud.state / "VMs" / ip / "info.json").read_bytes(), LocalVmInfo)


def files(cloud: Cloud, ip: str) -> list[Path]:
    return [Path(location.filename) for location in record(cloud, ip).volume_locations]


def stored(cloud: Cloud, ip: str) -> list[str]:
    """Everything in the VM's volume directory."""
    return sorted(path.name for path in (cloud.state / "volumes" / ip).iterdir())


async def started_again(cloud: Cloud) -> None:
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor()


async def more_fewer_another_order(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [MIB, 2 * MIB + 1])
        await client.add_vm_volumes(ip, [3 * MIB])
        sizes = [v.size for v in (await client.get_vm_info(ip)).volumes]
        assert sizes[1:] == [MIB, 2 * MIB + 512, 3 * MIB]
        for number, path in enumerate(files(cloud, ip)[1:], 1):
            assert path.stat().st_mode & 0o777 == 0o600
            path.write_bytes(bytes([number]) * sizes[number])
        await client.reorder_vm_volumes(ip, [3, 1, 2])
        await started_again(cloud)
    async with cloud.client() as client:
        await client.delete_vm_volume(ip, 2)
        volumes = (await client.get_vm_info(ip)).volumes
        assert [v.size for v in volumes[1:]] == [3 * MIB, 2 * MIB + 512]
        assert [path.read_bytes()[:1] for path in files(cloud, ip)[1:]] == [b"\x03", b"\x02"]
        await client.add_vm_volumes(ip, [512])  # by the name that is free
        assert files(cloud, ip)[3].read_bytes() == bytes(512)
        assert len(stored(cloud, ip)) == len({*files(cloud, ip)}) + 1, "and the kernel"
        # What a crash would have left is gone with the next start, and nothing else is.
        place = files(cloud, ip)[0].parent
        for name in ("secondary-volume.9", "root.1~", "root.old"):
            (place / name).touch()
        os.truncate(files(cloud, ip)[3], 4096)
        await started_again(cloud)
        assert {"secondary-volume.9", "root.1~", "root.old"} & set(stored(cloud, ip)) == {
            "root.old"
        }
        assert files(cloud, ip)[3].stat().st_size == 512
    async with cloud.client() as client:
        await client.destroy_vm(ip)
    assert not (cloud.state / "volumes" / ip).exists()


REFUSED: list[tuple[Callable[[HypervisorClient, str], Awaitable[object]], str]] = [
    (lambda c, ip: c.add_vm_volumes(ip, [0]), "a volume has 1 to"),
    (lambda c, ip: c.add_vm_volumes(ip, [1 << 63]), "a volume has 1 to"),
    (lambda c, ip: c.add_vm_volumes(ip, [1 << 55]), "not enough free space"),
    (lambda c, ip: c.add_vm_volumes(ip, [512] * 16), "16 volumes at most"),
    (lambda c, ip: c.delete_vm_volume(ip, 0), "cannot delete root volume"),
    (lambda c, ip: c.delete_vm_volume(ip, 2), "there is no volume 2: the VM has 2"),
    (lambda c, ip: c.reorder_vm_volumes(ip, [1, 1]), "each of 3 volumes once"),
    (lambda c, ip: c.reorder_vm_volumes(ip, [1, 0]), "boots a kernel beside it"),
    (lambda c, ip: c.change_vm_volume_size(ip, 5, MIB), "there is no volume 5"),
    (lambda c, ip: c.change_vm_volume_size(ip, 1, 0), "a volume has 1 to"),
    (lambda c, ip: c.change_vm_volume_size(ip, 1, 1 << 55), "not enough free space"),
    (lambda c, ip: c.change_vm_volume_size(ip, 1, 1), "no ext2, 3 or 4 file system"),
    (lambda c, ip: c.change_vm_volume_size(ip, 0, 4 * MIB), "its file system stays as it is"),
    (lambda c, ip: c.change_vm_volume_storage_index(ip, 0, 0), "boots a kernel beside its root"),
    (lambda c, ip: c.change_vm_volume_storage_index(ip, 1, 9), "storage[9] does not have"),
]


async def what_is_refused_leaves_nothing(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [MIB])
        before, names = record(cloud, ip), stored(cloud, ip)
        for change, text in REFUSED:
            with pytest.raises(ServiceError) as raised:
                await change(client, ip)
            assert text in str(raised.value)
        assert (record(cloud, ip), stored(cloud, ip)) == (before, names)


def said(*command: str) -> str:
    """What a program says that succeeds."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ext(path: Path, *command: str) -> str:
    """What debugfs says of the root's file system."""
    return said("debugfs", "-R", " ".join(command), f"{path}?offset={OFFSET}")


def blocks(path: Path) -> int:
    (line,) = [line for line in ext(path, "stats").splitlines() if line.startswith("Block count:")]
    return int(line.split()[-1])


async def a_root_grows_and_shrinks_with_its_file_system(cloud: Cloud) -> None:
    """From a layer over a brick, in place, and back; clean each time, with what was in it."""
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        first = (await client.get_vm_info(ip)).volumes[0].size
        for size in (first + 64 * MIB, first + 160 * MIB, first + 32 * MIB):
            await client.change_vm_volume_size(ip, 0, size)
            (path,) = files(cloud, ip)
            assert (path.stat().st_size, path.stat().st_uid) == (size, 0)
            assert (await client.get_vm_info(ip)).volumes[0].size == size
            assert blocks(path) * 4096 == (size - OFFSET) // 4096 * 4096
            assert f'"size": {(size - OFFSET) // 512}' in said("sfdisk", "--json", str(path))
            said("e2fsck", "-fn", f"{path}?offset={OFFSET}")
            assert ext(path, "cat", "/var/lib/initial-image") == "appliance\n"
            assert set(stored(cloud, ip)) == {path.name, "kernel"}
        await started_again(cloud)
    async with cloud.client() as client:
        assert (await client.get_vm_info(ip)).volumes[0].size == size


async def a_volume_that_is_a_file_system_grows_in_place(cloud: Cloud) -> None:
    """A damaged one does not, and is told of; the volume is larger all the same."""
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [16 * MIB, 16 * MIB])
        whole, damaged = files(cloud, ip)[1:]
        said("mke2fs", "-q", "-t", "ext4", str(whole))
        damaged.write_bytes(b"\xff" * 1080 + b"\x53\xef" + b"\xff" * (16 * MIB - 1082))
        inode = whole.stat().st_ino
        await client.change_vm_volume_size(ip, 1, 40 * MIB)
        assert (whole.stat().st_ino, whole.stat().st_size) == (inode, 40 * MIB)
        said("e2fsck", "-fn", str(whole))
        assert "Block count:              40960" in said("dumpe2fs", "-h", str(whole))
        with pytest.raises(ServiceError, match="its file system is damaged") as raised:
            await client.change_vm_volume_size(ip, 2, 32 * MIB)
        assert "\n" not in str(raised.value)
        assert damaged.stat().st_size == 32 * MIB
        assert [v.size for v in (await client.get_vm_info(ip)).volumes[1:]] == [40 * MIB, 32 * MIB]


async def test_a_volume_moves(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    places = [cloud.directory / "a", cloud.directory / "b"]
    await cloud.start_hypervisor(volume_directories=" ".join(map(str, places)))
    await cloud.set_up()
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [MIB])
        (_, path) = files(cloud, ip)
        assert path.parent == places[0] / ip
        path.write_bytes(b"data" * (MIB // 4))
        await client.change_vm_volume_storage_index(ip, 1, 1)
        (_, moved) = files(cloud, ip)
        assert moved.parent == places[1] / ip
        assert moved.read_bytes() == b"data" * (MIB // 4)
        assert not path.exists()
        found = await client.get_vm_volume_storage_configuration(ip)
        assert found.volume_storage_indices == [0, 1]
        await client.delete_vm_volume(ip, 1)
        assert not moved.parent.exists()


async def test_volumes(cloud: Cloud) -> None:
    """All at one agent, which is made once."""
    for part in (
        more_fewer_another_order,
        what_is_refused_leaves_nothing,
        a_root_grows_and_shrinks_with_its_file_system,
        a_volume_that_is_a_file_system_grows_in_place,
    ):
        await part(cloud)
        for ip in await cloud.states():
            await cloud.destroy(ip)
