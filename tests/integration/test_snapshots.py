"""Snapshots of a VM's volumes, and volumes sent to who has some of them, at a real agent."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from smallstack.client.blocks import block_order
from smallstack.client.errors import ServiceError
from smallstack.proto.hypervisor.every import GetVmVolumeRequest, GetVmVolumeResponse
from smallstack.proto.rsync import Block, GetBlocksRequest
from smallstack.proto.vm import LocalVmInfo
from smallstack.srpc.errors import ConnectionClosedError
from smallstack.srpc.json_coder import from_json
from tests.integration.cloud import Cloud

pytestmark = [pytest.mark.root]
MIB = 1 << 20


def files(cloud: Cloud, ip: str) -> list[Path]:
    found = from_json((cloud.state / "VMs" / ip / "info.json").read_bytes(), LocalVmInfo)
    return [Path(location.filename) for location in found.volume_locations]


async def there_and_back(cloud: Cloud, _: Path) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [MIB])
        root, second = files(cloud, ip)
        first = root.read_bytes()
        second.write_bytes(b"1" * MIB)
        await client.snapshot_vm(ip, "all")
        await client.snapshot_vm(ip, root_only=True)
        volumes = (await client.get_vm_info(ip)).volumes
        assert [set(volume.snapshots) for volume in volumes] == [{"all", ""}, {"all"}]
        assert volumes[1].snapshots == {"all": MIB}
        second.write_bytes(b"2" * MIB)
        for index in (0, 1):
            with pytest.raises(ServiceError, match="the volume has snapshots"):
                await client.change_vm_volume_size(ip, index, 8 * MIB)
        (root.parent / "root.snapshot:half~").touch()  # of a crash
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor()
    async with cloud.client() as client:
        assert (await client.get_vm_info(ip)).volumes == volumes
        assert not (root.parent / "root.snapshot:half~").exists()
        await client.restore_vm_from_snapshot(ip, "all", retain=True)
        assert second.read_bytes() == b"1" * MIB
        second.write_bytes(b"3" * MIB)
        await client.snapshot_vm(ip, "all")  # in the place of the former
        await client.restore_vm_from_snapshot(ip, "all")
        assert (root.read_bytes(), second.read_bytes()) == (first, b"3" * MIB)
        assert [set(v.snapshots) for v in (await client.get_vm_info(ip)).volumes] == [{""}, set()]
        await client.discard_vm_snapshot(ip)
        for refused in (client.restore_vm_from_snapshot, client.discard_vm_snapshot):
            with pytest.raises(ServiceError, match="the VM has no snapshot"):
                await refused(ip, "all")
        for name in ("a/b", "a.b", "a:b", "x" * 65, "a\n"):
            with pytest.raises(ServiceError, match="a snapshot's name has 64 characters at most"):
                await client.snapshot_vm(ip, name)
        assert sorted(path.name for path in root.parent.iterdir()) == [
            "kernel",
            "root",
            "secondary-volume.0",
        ]


def shown(path: Path, out: Path) -> bytes:
    """What a layer shows, as QEMU's own tool has it."""
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(out)]
    subprocess.run(command, check=True)
    return out.read_bytes()


async def a_volume_is_sent_by_what_differs(cloud: Cloud, tmp_path: Path) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [4 * MIB + 512])
        root, second = files(cloud, ip)
        whole = shown(root, tmp_path / "whole")
        size = len(whole)
        fd = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
        try:
            assert await client.get_vm_volume(ip, 0, fd, size) == size
            assert (tmp_path / "copy").read_bytes() == whole
            assert (tmp_path / "copy").stat().st_blocks * 512 < size // 2, "holes stay holes"
            block = 1 << block_order(size)
            os.pwrite(fd, b"changed", 3 * block + 5)
            os.ftruncate(fd, size - block - 1)
            assert await client.get_vm_volume(ip, 0, fd, size) == 3 * block
            assert (tmp_path / "copy").read_bytes() == whole
        finally:
            os.close(fd)
        content = os.urandom(4 * MIB + 512)
        second.write_bytes(content)
        fd = os.open(tmp_path / "second", os.O_RDWR | os.O_CREAT)
        try:
            assert await client.get_vm_volume(ip, 1, fd, len(content)) == len(content)
            assert await client.get_vm_volume(ip, 1, fd, len(content)) == 512
        finally:
            os.close(fd)
        assert (tmp_path / "second").read_bytes() == content
        await client.change_vm_tags(ip, {"it": "is held no more"})


async def the_words_of_the_protocol(cloud: Cloud, _: Path) -> None:
    """As upstream's receivers speak: the extra files, all hashes before anything is read."""
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.add_vm_volumes(ip, [1024])
        method = "Hypervisor.GetVmVolume"
        async with client.client.raw(method) as conn:
            conn.encode(GetVmVolumeRequest(ip_address=ip))
            await conn.flush()
            refused = await conn.decode(GetVmVolumeResponse)
            assert "boots a kernel beside its root" in refused.error
        async with client.client.raw(method) as conn:
            conn.encode(GetVmVolumeRequest(ip_address=ip, volume_index=1))
            await conn.flush()
            assert await conn.decode(GetVmVolumeResponse) == GetVmVolumeResponse()
            conn.encode(GetBlocksRequest(block_order=9, num_blocks=2))
            conn.write(hashlib.sha512(bytes(512)).digest() + bytes(64))
            await conn.flush()
            assert await conn.decode(Block) == Block(index=1, size=512)
            assert await conn.read_exactly(512) == bytes(512)
            assert await conn.decode(Block) == Block(index=2)
        async with client.client.raw(method) as conn:
            conn.encode(GetVmVolumeRequest(ip_address=ip, get_extra_files=True))
            await conn.flush()
            reply = await conn.decode(GetVmVolumeResponse)
            assert reply.extra_files == {
                "kernel": (cloud.state / "volumes" / ip / "kernel").read_bytes()
            }
            conn.close()
    for order, blocks, text in (
        (8, 1, "blocks of 2^8 bytes"),
        (9, 3, "the disk has 1024"),
        (32, 1 << 62, "the disk has 1024"),
    ):
        async with cloud.client() as client:
            with pytest.raises(ConnectionClosedError):
                async with client.client.raw(method) as conn:
                    conn.encode(GetVmVolumeRequest(ip_address=ip, volume_index=1))
                    await conn.flush()
                    await conn.decode(GetVmVolumeResponse)
                    conn.encode(GetBlocksRequest(block_order=order, num_blocks=blocks))
                    await conn.flush()
                    assert text in (await conn.decode(Block)).error
                    await conn.decode(Block)


async def test_snapshots_and_what_is_sent(cloud: Cloud, tmp_path: Path) -> None:
    """All at one agent, which is made once."""
    for part in (there_and_back, a_volume_is_sent_by_what_differs, the_words_of_the_protocol):
        await part(cloud, tmp_path)
        for ip in await cloud.states():
            await cloud.destroy(ip)
