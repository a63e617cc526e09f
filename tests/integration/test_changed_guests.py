"""What was changed of a VM, as its guest sees it."""

from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from tests.integration.cloud import SECOND, Cloud
from tests.network.world import settled

pytestmark = [pytest.mark.root, pytest.mark.qemu]
MIB = 1 << 20


async def said(cloud: Cloud, ip: str, command: str) -> str:
    """What a command says on the guest's console."""
    async with cloud.client() as client, client.connect_serial(ip) as port:
        port.write(f"\n{command}; echo en''ded\n".encode())
        await port.flush()
        seen = b""
        while b"\nended" not in seen.replace(b"\r", b""):
            seen += await port.read_some()
    return seen.decode(errors="replace").replace("\r", "").split(command)[-1]


def niceness(ip: str, pids: list[int]) -> int:
    (pid,) = (p for p in pids if f"guest={ip}" in Path(f"/proc/{p}/cmdline").read_text())
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


async def test_changed_while_stopped_and_while_it_runs(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor(cpu_control="none")
    await cloud.set_up()
    ip = (await cloud.create(do_not_start=True)).ip_address
    async with cloud.client() as client:
        size = (await client.get_vm_info(ip)).volumes[0].size
        await client.add_vm_volumes(ip, [3 * MIB])
        await client.change_vm_volume_size(ip, 0, size + 64 * MIB)
        await client.change_vm_size(ip, memory_in_mib=192)
        await client.change_vm_hostname(ip, "first")
        assert await client.start_vm(ip, dhcp_timeout=120 * SECOND)
        seen = await said(cloud, ip, "cat /proc/partitions /proc/meminfo; hostname")
        words = [line.split() for line in seen.splitlines()]
        blocks = {line[3]: int(line[2]) for line in words if line[3:4] in (["vda"], ["vdb"])}
        memory = next(int(line[1]) for line in words if "MemTotal:" in line)
        assert blocks["vda"] * 1024 == size + 64 * MIB
        assert blocks["vdb"] * 1024 == 3 * MIB
        assert ["first"] in words
        assert 128 < memory / 1024 <= 192

        # While it runs: what needs a stopped VM is refused, the rest is felt.
        for refused in (
            client.change_vm_size(ip, memory_in_mib=256),
            client.change_vm_num_network_queues(ip, [1]),
            client.add_vm_volumes(ip, [MIB]),
            client.change_vm_volume_size(ip, 0, size),
            client.change_vm_subnet(ip, "other"),
            client.snapshot_vm(ip),
        ):
            with pytest.raises(ServiceError, match="VM is not stopped"):
                await refused
        await client.change_vm_cpu_priority(ip, 7)
        assert niceness(ip, cloud.qemu_pids()) == 7
        await client.change_vm_size(ip, milli_cpus=20)
        await client.change_vm_hostname(ip, "second")
        await client.change_vm_destroy_protection(ip, True)
        with pytest.raises(ServiceError, match="cannot destroy running VM when protected"):
            await client.destroy_vm(ip)
        assert await client.reboot_vm(ip, dhcp_timeout=120 * SECOND)
        assert "second" in (await said(cloud, ip, "hostname")).split()
        await client.stop_vm(ip)
        await client.destroy_vm(ip)


async def test_queues_of_a_network_interface(cloud: Cloud) -> None:
    """A q35 gets a descriptor of its tap for each; nothing is there to boot."""
    ip = (await cloud.create(image_name="", do_not_start=True)).ip_address
    async with cloud.client() as client:
        await client.change_vm_num_network_queues(ip, [3])
        await client.start_vm(ip)
        (pid,) = cloud.qemu_pids()
        files = Path(f"/proc/{pid}/fd").iterdir()
        assert [file.readlink() for file in files].count(Path("/dev/net/tun")) == 3
        await client.destroy_vm(ip)
    assert settled(lambda: not any(name.startswith("ss-") for name in cloud.look().links))
