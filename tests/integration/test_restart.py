"""The agent ends, in order or by SIGKILL, and the next one takes its VMs up again."""

import asyncio
import json
import os
import pwd
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.control.sandbox import DaemonError
from smallstack.hypervisor import users
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.every import CreateVmResponse
from smallstack.srpc.errors import ConnectionClosedError
from tests.integration.cloud import IMAGE, SECOND, Cloud, request

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.timeout(600)]

MANY = 20


def identity_of(text: str) -> dict[str, object]:
    """The identity document that the guest printed."""
    begin = text.index("smallstack: identity-begin")
    document = text[text.index("{", begin) : text.index("smallstack: identity-end")]
    found: dict[str, object] = json.loads("".join(document.replace("\r", "").splitlines()))
    return found


async def console(cloud: Cloud, ip: str, wanted: bytes) -> str:
    """What the console shows until ``wanted``."""
    seen = b""
    async with cloud.client() as client, client.connect_serial(ip) as port:
        while wanted not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
    return seen.decode(errors="replace")


async def test_twenty_at_once_outlive_their_agent(
    bare_cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor()
    await cloud.set_up(count=MANY)
    made = await asyncio.gather(*(cloud.create(hostname=f"vm{n}") for n in range(MANY)))
    ips = {reply.ip_address for reply in made}
    assert len(ips) == MANY
    assert not any(reply.dhcp_timed_out for reply in made)
    pids = sorted(cloud.qemu_pids())
    assert len(pids) == MANY
    for ip in sorted(ips):
        document = identity_of(await console(cloud, ip, b"smallstack: identity-end"))
        address = document["Address"]
        assert isinstance(address, dict)
        assert address["IpAddress"] == ip
    rss = int(Path(f"/proc/{cloud.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    await cloud.kill_hypervisor()
    assert sorted(cloud.qemu_pids()) == pids
    await cloud.start_hypervisor()
    assert await cloud.states() == dict.fromkeys(ips, State.RUNNING)
    assert sorted(cloud.qemu_pids()) == pids

    # Controllable: console, metadata, reboot with its DHCP, stop, start, destroy.
    some = sorted(ips)
    async with cloud.client() as client:
        for ip in some:
            assert await client.probe_vm_port(ip, 80, 30 * SECOND)
        assert await client.reboot_vm(some[0], dhcp_timeout=120 * SECOND)
        await client.stop_vm(some[1])
        assert await client.start_vm(some[1], dhcp_timeout=120 * SECOND)
    async with cloud.client() as client, client.connect_serial(some[2]) as port:
        port.write(b"echo al''ive\n")
        await port.flush()
        seen = b""
        while b"alive" not in seen:
            seen += await port.read_some()
    await asyncio.gather(*(cloud.destroy(ip) for ip in some))
    assert cloud.qemu_pids() == []
    with capsys.disabled():
        print(f"\n{MANY} VMs at once; the agent's RSS with them: {rss >> 20} MiB")


@pytest.mark.parametrize("how", ["kill", "term"])
async def test_states_across_a_restart(cloud: Cloud, how: str) -> None:
    running = (await cloud.create(hostname="running")).ip_address
    stopped = (await cloud.create(hostname="stopped", do_not_start=True)).ip_address
    lost = (await cloud.create(hostname="lost")).ip_address
    before = set(cloud.qemu_pids())
    await (cloud.kill_hypervisor() if how == "kill" else cloud.stop_hypervisor())
    (dead,) = (pid for pid in before if _names(pid, lost))
    os.kill(dead, signal.SIGKILL)
    await cloud.start_hypervisor()
    async with cloud.client() as client:
        assert (await client.get_vm_info(running)).state is State.RUNNING
        assert (await client.get_vm_info(stopped)).state is State.STOPPED
        # One whose machine has gone meanwhile is launched again.
        assert await client.probe_vm_port(lost, 80, 60 * SECOND)
        assert (await client.get_vm_info(lost)).state is State.RUNNING
    assert before - {dead} < set(cloud.qemu_pids())
    for ip in (running, stopped, lost):
        await cloud.destroy(ip)


def _names(pid: int, ip: str) -> bool:
    return f"guest={ip}" in Path(f"/proc/{pid}/cmdline").read_text()


async def test_what_was_stopping_or_destroying_is_finished(cloud: Cloud) -> None:
    ips = [(await cloud.create(hostname=f"vm{n}")).ip_address for n in range(3)]
    await cloud.kill_hypervisor()
    for ip, state in zip(ips, ("stopping", "destroying", "destroying"), strict=True):
        record = cloud.state / "VMs" / ip / "info.json"
        record.write_text(record.read_text().replace('"running"', f'"{state}"'))
    (pid,) = (pid for pid in cloud.qemu_pids() if _names(pid, ips[2]))
    os.kill(pid, signal.SIGKILL)
    await cloud.start_hypervisor()
    while len(found := await cloud.states()) > 1 or State.STOPPED not in found.values():
        async with cloud.client() as client:  # each look is an RPC: no busy loop
            await client.get_capacity()
    assert found == {ips[0]: State.STOPPED}
    assert cloud.qemu_pids() == []
    await cloud.destroy(ips[0])


async def test_a_dying_qemu_is_a_crash(cloud: Cloud) -> None:
    ip = (await cloud.create()).ip_address
    os.kill(cloud.qemu_pids()[0], signal.SIGKILL)
    async with cloud.client() as client:
        while (await client.get_vm_info(ip)).state is not State.CRASHED:
            await client.get_capacity()
        with pytest.raises(ServiceError, match="VM has crashed"):
            await client.reboot_vm(ip)
        assert await client.start_vm(ip, dhcp_timeout=60 * SECOND)
        await client.destroy_vm(ip)


async def test_unacknowledged(bare_cloud: Cloud) -> None:
    """Destroyed after its time, also when the agent was killed in between."""
    cloud = bare_cloud
    await cloud.start_hypervisor(acknowledge_seconds=0.5)
    await cloud.set_up()
    await cloud.destroy((await cloud.create()).ip_address)
    files = cloud.look().files
    async with cloud.client() as client:
        async for reply in client.create_vm(request()):
            last = reply
        assert last.final
        while await client.list_vms():
            await client.get_capacity()
    assert cloud.look().files == files

    await cloud.stop_hypervisor()
    await cloud.start_hypervisor(acknowledge_seconds=3600)
    async with cloud.client() as client:
        async for reply in client.create_vm(request()):
            last = reply
        await cloud.kill_hypervisor()
    await cloud.start_hypervisor(acknowledge_seconds=3600)
    async with cloud.client() as client:
        assert await client.list_vms() == [last.ip_address]
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor(acknowledge_seconds=0.1)
    async with cloud.client() as client:
        while await client.list_vms():
            await client.get_capacity()
    assert cloud.qemu_pids() == []
    assert sorted(cloud.look().files) == files


async def test_acknowledged_to_the_next_agent(bare_cloud: Cloud) -> None:
    cloud = bare_cloud
    await cloud.start_hypervisor()
    await cloud.set_up()
    async with cloud.client() as client:
        async for reply in client.create_vm(request()):
            last = reply
        await cloud.kill_hypervisor()
    await cloud.start_hypervisor(acknowledge_seconds=3600)
    async with cloud.client() as client:
        await client.acknowledge_vm(last.ip_address)
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor(acknowledge_seconds=0.0)
    assert await cloud.states() == {last.ip_address: State.RUNNING}
    await cloud.destroy(last.ip_address)


async def test_a_client_that_goes_away_takes_its_vm_along(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each message of a create: nothing is left, at once."""
    await cloud.destroy((await cloud.create()).ip_address)
    before = cloud.look()
    seen: list[str] = []
    for count in range(4):
        async with cloud.client() as client:
            if count == 0:
                await _break_off_in_user_data(client)
            else:
                async with aclosing(client.create_vm(request(), user_data=b"x" * 10_000)) as told:
                    messages = [(await anext(told)).progress_message for _ in range(count)]
                    seen.append(messages[-1])
        async with cloud.client() as client:
            while await client.list_vms():
                await client.get_capacity()
        assert cloud.left(before) == ""
    with capsys.disabled():
        print(f"\nclient gone in its user data, and after: {seen}")


async def _break_off_in_user_data(client: HypervisorClient) -> None:
    with pytest.raises(ConnectionClosedError):
        async with client.client.raw("Hypervisor.CreateVm") as conn:
            conn.encode(request(user_data_size=10_000_000))
            await conn.flush()
            conn.write(b"x" * 100_000)
            await conn.flush()
            await conn.decode(CreateVmResponse)
            conn.abort()
            await conn.read_exactly(1 << 20)


async def test_two_agents_do_not_share_a_state_directory(cloud: Cloud) -> None:
    first = cloud.hypervisor
    with pytest.raises(DaemonError, match="is in use by another hypervisor"):
        await cloud.start_hypervisor(port="6999", bridge="br1")
    cloud.hypervisor = first
    assert await cloud.states() == {}


async def test_a_lost_brick_is_made_again(cloud: Cloud) -> None:
    """A crash of the machine can take a brick that was not synced: the layer over it still fits."""
    ip = (await cloud.create(do_not_start=True)).ip_address
    await cloud.kill_hypervisor()
    for brick in (cloud.state / "volumes" / "bricks").iterdir():
        brick.unlink()
    await cloud.start_hypervisor()
    async with cloud.client() as client:
        assert await client.start_vm(ip, dhcp_timeout=60 * SECOND)
        assert (await client.get_vm_info(ip)).image_name == IMAGE
        await client.destroy_vm(ip)


async def test_a_journal_that_came_back_harms_nobody(cloud: Cloud) -> None:
    """Its removal is not synced: after a crash of the machine an old one can be there again."""
    ip = (await cloud.create()).ip_address
    await cloud.kill_hypervisor()
    journals = cloud.state / "journals"
    lines: list[dict[str, object]] = [{"operation": "create", "data": {}}, {"note": {"ip": ip}}]
    lines += [{"begin": step} for step in ("reserve", "directory", "volumes", "start", "settle")]
    (journals / "create-old").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (journals / "create-torn").write_bytes(b"\xff{torn")
    (journals / "create-nameless").write_text('{"begin":"reserve"}\n{"begin":"directory"}\n')
    (journals / "create-evil").write_text('{"note":{"ip":"../.."}}\n{"begin":"directory"}\n')
    await cloud.start_hypervisor()
    assert await cloud.states() == {ip: State.RUNNING}
    assert not (journals / "create-old").exists()
    assert (cloud.state / "VMs").is_dir()
    for name in ("create-nameless", "create-evil"):
        assert name in cloud.log
    await cloud.destroy(ip)


async def test_a_vm_whose_record_is_broken_is_left_alone(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    await cloud.stop_hypervisor()
    record = cloud.state / "VMs" / ip / "info.json"
    good = record.read_bytes()
    record.write_text("{")
    await cloud.start_hypervisor()
    assert await cloud.states() == {}
    assert "it is left alone" in cloud.log
    others = [(await cloud.create(do_not_start=True)).ip_address for _ in range(3)]
    assert ip not in others
    with pytest.raises(ServiceError, match="no free addresses in pool"):
        await cloud.create(do_not_start=True)
    await cloud.stop_hypervisor()
    record.write_bytes(good)
    await cloud.start_hypervisor()
    assert set(await cloud.states()) == {ip, *others}
    async with cloud.client() as client:
        assert await client.start_vm(ip, dhcp_timeout=60 * SECOND)
    for name in (ip, *others):
        await cloud.destroy(name)


async def test_machines_of_another_user_are_found(bare_cloud: Cloud) -> None:
    """One user for all before, one for each VM since: what runs is kept, and goes over."""
    cloud = bare_cloud
    await cloud.start_hypervisor(qemu_user="nobody")
    await cloud.set_up()
    made = [await cloud.create() for _ in range(2)]
    pids = sorted(cloud.qemu_pids())
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {nobody}
    for reply in made:  # as an agent of before there were any slots left it
        record = cloud.state / "VMs" / reply.ip_address / "agent.json"
        content = json.loads(record.read_text())
        del content["slot"]
        record.write_text(json.dumps(content))

    await cloud.kill_hypervisor()
    await cloud.start_hypervisor()
    assert await cloud.states() == {reply.ip_address: State.RUNNING for reply in made}
    assert sorted(cloud.qemu_pids()) == pids
    async with cloud.client() as client:
        await client.stop_vm(made[0].ip_address)
        await client.start_vm(made[0].ip_address, dhcp_timeout=60 * SECOND)
    (started,) = set(cloud.qemu_pids()) - set(pids)
    own = Path(f"/proc/{started}").stat().st_uid
    assert own >= users.FIRST
    await cloud.kill_hypervisor()
    await cloud.start_hypervisor()
    assert started in cloud.qemu_pids()
    await cloud.create()
    (third,) = set(cloud.qemu_pids()) - {started, *pids}
    assert Path(f"/proc/{third}").stat().st_uid not in (nobody, own)
    for ip in await cloud.states():
        await cloud.destroy(ip)
    assert cloud.qemu_pids() == []


async def test_volumes_that_are_not_what_the_records_say(cloud: Cloud) -> None:
    """Neither booted from nor shown as sound; put back, they are."""
    ran = (await cloud.create(hostname="ran")).ip_address
    cut = (await cloud.create(hostname="cut", do_not_start=True)).ip_address
    sound = (await cloud.create(hostname="sound", do_not_start=True)).ip_address
    await cloud.stop_hypervisor()
    for pid in cloud.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    volumes = cloud.state / "volumes"
    (volumes / ran / "root").rename(volumes / "kept")
    size = (volumes / cut / "root").stat().st_size
    os.truncate(volumes / cut / "root", 100)
    await cloud.start_hypervisor()
    async with asyncio.timeout(60):
        while await cloud.states() != {
            ran: State.FAILED_TO_START,
            cut: State.FAILED_TO_START,
            sound: State.STOPPED,
        }:
            pass
    for ip, word in ((ran, "No such file"), (cut, "100 bytes")):
        lines = [line for line in cloud.log.splitlines() if f"{ip}/root" in line]
        assert len(lines) == 1, lines
        assert f"volume {volumes / ip / 'root'} cannot be used: " in lines[0]
        assert word in lines[0]
        async with cloud.client() as client:
            with pytest.raises(ServiceError, match="put the file back, or destroy the VM"):
                await client.start_vm(ip)
    (volumes / "kept").rename(volumes / ran / "root")
    async with cloud.client() as client:
        assert await client.start_vm(ran, dhcp_timeout=60 * SECOND)
    record = (cloud.state / "VMs" / cut / "info.json").read_text()
    assert size > 100
    assert '"State": "failed to start"' in record, "it was asked to start, and failed"
    for ip in (ran, cut, sound):
        await cloud.destroy(ip)
