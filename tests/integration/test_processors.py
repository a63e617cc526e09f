"""VMs' shares of the processors: a control group each, as long as its machine lives."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from smallstack.machine.cgroup import PREFIX, state_name
from smallstack.network.tap import tap_name
from smallstack.proto.enums import State
from tests.integration.cloud import Cloud, addresses
from tests.integration.leaks import groups

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.timeout(600)]


def group(cloud: Cloud, ip: str) -> Path:
    """Of a VM that runs, by its process."""
    (pid,) = (
        pid
        for pid in cloud.qemu_pids()
        if f"guest={ip}" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    (path,) = (
        path
        for path in Path("/sys/fs/cgroup").rglob(f"{PREFIX}{state_name(cloud.state)}/{ip}")
        if str(pid) in (path / "cgroup.procs").read_text().split()
    )
    return path


def weight_file(path: Path) -> Path:
    """Version 1, or 2."""
    shares = path / "cpu.shares"
    return shares if shares.exists() else path / "cpu.weight"


def weight(path: Path) -> int:
    return int(weight_file(path).read_text())


def quota(path: Path) -> str:
    """Microseconds of 100 ms."""
    first = path / "cpu.cfs_quota_us"
    return (first if first.exists() else path / "cpu.max").read_text().split()[0]


async def test_a_group_for_every_machine_that_runs(cloud: Cloud) -> None:
    before = cloud.look()
    small = (await cloud.create(hostname="small", milli_cpus=250)).ip_address
    large = (await cloud.create(hostname="large", milli_cpus=1000)).ip_address
    assert weight(group(cloud, large)) == 4 * weight(group(cloud, small))
    assert quota(group(cloud, small)) in {"-1", "max"}
    async with cloud.client() as client:
        await client.stop_vm(small)
        assert len(groups(cloud.state)) == 2, "the agent's and the large one's"
        await client.start_vm(small)
        # A launch of its own: the same guest in a new process.
        assert await client.reboot_vm(large, dhcp_timeout=120 * 10**9)
    # The agent is killed, one machine dies meanwhile, the other is found with its group.
    found = group(cloud, large)
    lost = int((group(cloud, small) / "cgroup.procs").read_text())
    await cloud.kill_hypervisor()
    os.kill(lost, signal.SIGKILL)
    weight_file(found).write_text("2")
    await cloud.start_hypervisor()
    assert group(cloud, large) == found
    assert weight(found) > 2, "its share is given again"
    async with cloud.client() as client:
        await client.probe_vm_port(small, 80, 60 * 10**9)
    assert weight(found) == 4 * weight(group(cloud, small))
    await asyncio.gather(cloud.destroy(small), cloud.destroy(large))
    assert not cloud.left(before)
    await cloud.stop_hypervisor()
    assert groups(cloud.state) == []


async def test_a_quota_on_request(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor(cpu_control="quota")
    await cloud.set_up()
    ip = (await cloud.create(milli_cpus=900)).ip_address
    assert quota(group(cloud, ip)) == "90000"
    await cloud.destroy(ip)


async def test_a_qemu_that_hangs_after_it_gave_up_its_tap(bare_cloud: Cloud) -> None:
    """As QEMU does in the middle of its exit: nothing on its monitor tells of it."""
    cloud = bare_cloud
    await cloud.start_hypervisor(exit_limit=1.0)
    await cloud.set_up()
    well = (await cloud.create(hostname="well")).ip_address
    ill = (await cloud.create(hostname="ill")).ip_address
    (pid,) = map(int, (group(cloud, ill) / "cgroup.procs").read_text().split())
    os.kill(pid, signal.SIGSTOP)
    macs = {address.ip_address: address.mac_address for address in addresses(2)}
    for ip in (well, ill):
        deleting = await asyncio.create_subprocess_exec("ip", "link", "del", tap_name(ip, macs[ip]))
        assert await deleting.wait() == 0
    async with asyncio.timeout(60), cloud.client() as client:
        while (await client.get_vm_info(ill)).state is State.RUNNING:
            pass
        assert (await client.get_vm_info(ill)).state is State.CRASHED
        assert (await client.get_vm_info(well)).state is State.RUNNING
    assert "QEMU hangs at its end: killing it" in cloud.log
    for ip in (well, ill):
        await cloud.destroy(ip)


async def test_without_control_groups_there_is_one_warning(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor(script="mount -t tmpfs none /sys/fs/cgroup")
    await cloud.set_up(count=2)
    for name in ("one", "two"):
        assert not (await cloud.create(hostname=name)).dhcp_timed_out
    # A loaded machine makes the agent warn of other things as well, such as its loop being held.
    told = [line for line in cloud.log.splitlines() if "control group" in line]
    assert len(told) == 1, cloud.log
    assert "WARNING" in told[0]
    assert "no control groups for processors, all VMs compete as equals: " in told[0]
    assert groups(cloud.state) == []
