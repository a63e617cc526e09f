"""The whole life of a VM, through the same RPC that users have."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.hypervisor import users
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.every import ChangeAddressPoolRequest
from smallstack.srpc.errors import AccessDeniedError
from tests.integration.cloud import SECOND, Cloud, request

pytestmark = [pytest.mark.root, pytest.mark.qemu]


async def test_create_use_stop_start_reboot_destroy(cloud: Cloud) -> None:
    await cloud.destroy((await cloud.create(do_not_start=True)).ip_address)
    before = cloud.look()
    async with cloud.client() as client:
        wanted = request(hostname="first", tags={"Name": "first"}, owner_groups=["crew"])
        data = b"#!/bin/sh\ntrue\n"
        messages = [reply async for reply in client.create_vm(wanted, user_data=data)]
        ip = messages[-1].ip_address
        assert ip == "198.51.100.3"
        assert [(m.progress_message, m.ip_address) for m in messages] == [
            ("getting image", ""),
            ("unpacking image: appliance", ""),
            (f"starting VM {ip}", ip),
            ("", ip),
        ]
        final = messages[-1]
        assert final.final
        assert not final.dhcp_timed_out
        names = {phase.name for phase in final.timeline}
        assert {
            "reserve",
            "get image",
            "layer",
            "network",
            "qemu exec",
            "dhcp ack",
        } <= names
        await client.acknowledge_vm(ip)
        await client.acknowledge_vm(ip)

        info = await client.get_vm_info(ip)
        assert info.state is State.RUNNING
        assert (info.hostname, info.image_name, info.memory_in_mib) == ("first", "appliance", 128)
        assert info.owner_users == ["user"]
        assert info.volumes[0].size % (16 << 20) == 0
        assert not info.created_on.is_zero()

        assert await client.list_vms() == [ip]
        assert await client.list_vms(ignore_state_mask=1 << State.RUNNING) == []
        assert await client.list_vms(owner_users=["user"], tags={"Name": ["first"]}) == [ip]
        assert await client.list_vms(owner_groups=["others"]) == []

        assert await client.probe_vm_port(ip, 80, 30 * SECOND)
        assert not await client.probe_vm_port(ip, 81, SECOND // 10)

        assert await client.get_vm_user_data(ip) == b"#!/bin/sh\ntrue\n"
        await client.replace_vm_user_data(ip, b"other")
        assert await client.get_vm_user_data(ip) == b"other"

        with pytest.raises(ServiceError, match="VM is running"):
            await client.start_vm(ip)
        assert await client.reboot_vm(ip, dhcp_timeout=60 * SECOND)
        assert (await client.get_vm_info(ip)).state is State.RUNNING
        await client.stop_vm(ip)
        assert (await client.get_vm_info(ip)).state is State.STOPPED
        assert cloud.qemu_pids() == []
        with pytest.raises(ServiceError, match="VM is already stopped"):
            await client.stop_vm(ip)
        with pytest.raises(ServiceError, match="VM is stopped"):
            await client.reboot_vm(ip)
        assert await client.start_vm(ip, dhcp_timeout=60 * SECOND)
        await client.destroy_vm(ip)
        with pytest.raises(ServiceError, match=f"no VM with IP address: {ip} found"):
            await client.get_vm_info(ip)
    assert cloud.left(before) == ""


async def test_the_console_shows_the_guests_identity(cloud: Cloud) -> None:
    """From its first byte, also to those who come late."""
    made = await cloud.create(hostname="named")
    async with (
        cloud.client() as client,
        client.connect_serial(made.ip_address) as port,
    ):
        seen = b""
        while b"smallstack: identity-end" not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
        async with cloud.client() as second:
            with pytest.raises(ServiceError, match="VM already has a serial port connection"):
                async with second.connect_serial(made.ip_address):
                    pass
        port.write(b"echo to$((40+2))you\n")
        await port.flush()
        while b"to42you" not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
        # The agent's own port, on the metadata service's address, from inside the guest.
        port.write(b"wget -qO- http://169.254.169.254:6976/healthz; echo he''re\n")
        await port.flush()
        while b"here" not in seen:
            data = await port.read_some()
            assert data, seen
            seen += data
    assert b"OK" in seen[seen.rindex(b"healthz") :]
    text = seen.decode(errors="replace")
    begin = text.index("smallstack: identity-begin")
    document = text[text.index("{", begin) : text.index("smallstack: identity-end")]
    record = json.loads("".join(document.replace("\r", "").splitlines()))
    assert record["Address"]["IpAddress"] == made.ip_address
    assert record["Hostname"] == "named"
    async with cloud.client() as client:
        with pytest.raises(ServiceError, match="only one serial port is supported"):
            async with client.connect_serial(made.ip_address, 1):
                pass


async def test_metadata_is_traced(cloud: Cloud) -> None:
    made = await cloud.create(do_not_start=True)
    assert (await cloud.states())[made.ip_address] is State.STOPPED
    paths: list[str] = []
    async with cloud.client() as watcher, cloud.client() as client:

        async def watch() -> None:
            paths.extend([p async for p in watcher.trace_vm_metadata(made.ip_address)])

        watching = asyncio.create_task(watch())
        await client.start_vm(made.ip_address, dhcp_timeout=60 * SECOND)
        assert await client.probe_vm_port(made.ip_address, 80, 30 * SECOND)
        await client.destroy_vm(made.ip_address)
        await watching
    assert "/latest/dynamic/instance-identity/document" in paths
    assert paths[-1] == "VM destroyed"


async def test_rights(cloud: Cloud) -> None:
    made = await cloud.create()
    async with cloud.client(cloud.user("eve")) as eve:
        assert (await eve.get_vm_info(made.ip_address)).state is State.RUNNING
        for act in (eve.stop_vm, eve.start_vm, eve.reboot_vm, eve.destroy_vm, eve.get_vm_user_data):
            with pytest.raises(ServiceError, match=r"^no access to resource: neither"):
                await act(made.ip_address)
        with pytest.raises(ServiceError, match=r"^no access to resource: neither"):
            await eve.replace_vm_user_data(made.ip_address, b"x" * 100_000)
        with pytest.raises(AccessDeniedError):
            await eve.change_address_pool(ChangeAddressPoolRequest())
        # The connection has stayed usable, and her own VM is hers.
        async for reply in eve.create_vm(request(hostname="hers", do_not_start=True)):
            last = reply
        assert (await eve.get_vm_info(last.ip_address)).owner_users == ["eve"]
        await eve.destroy_vm(last.ip_address)


async def test_every_thread_of_qemu_is_confined(cloud: Cloud) -> None:
    await cloud.create()
    (pid,) = cloud.qemu_pids()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        text = (thread / "status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        assert int(status["CapEff"], 16) == 0
        assert all(int(uid) != 0 for uid in status["Uid"].split())
        assert all(int(gid) != 0 for gid in status["Gid"].split())


def ids_of(pid: int) -> tuple[int, int]:
    """Uid and gid of a process; it has no others."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    (uid,), (gid,) = set(status["Uid"].split()), set(status["Gid"].split())
    assert status["Groups"].strip() == ""
    return int(uid), int(gid)


GRASP = """
import ctypes, os, sys

libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
PIDFD_GETFD, PTRACE_SEIZE = 438, 0x4206
for result in (
    libc.syscall(PIDFD_GETFD, os.pidfd_open(pid), 3, 0),
    libc.ptrace(PTRACE_SEIZE, pid, None, None),
):
    print("had" if result >= 0 else os.strerror(ctypes.get_errno()))
try:
    os.open(f"/proc/{pid}/mem", os.O_RDWR)
    print("had")
except OSError as error:
    print(error.strerror)
"""
"""Takes a descriptor of a process, traces it, opens its memory."""


async def test_no_qemu_can_touch_another(cloud: Cloud) -> None:
    for _ in range(2):
        await cloud.create()
    one, other = cloud.qemu_pids()
    uid, gid = ids_of(one)
    assert users.FIRST <= uid == gid < users.FIRST + users.COUNT
    assert ids_of(other)[0] != uid
    assert ids_of(other)[1] != gid
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).resolve(),
        *("-I", "-c", GRASP, str(other)),
        user=uid,
        group=gid,
        extra_groups=[],
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert said.decode().splitlines() == ["Operation not permitted"] * 2 + ["Permission denied"]


async def test_what_everybody_may_read(cloud: Cloud) -> None:
    """Of guests, images and users nothing: neither by the names of files nor on the way to them."""
    await cloud.create(user_data=b"secret", overlay_files={"/etc/secret": b"secret"})
    found = set()
    for state in (cloud.state, cloud.directory / "imageserver"):
        for root, directories, files in os.walk(state):
            inside = [name for name in directories if (Path(root) / name).stat().st_mode & 0o001]
            directories[:] = inside
            found |= {name for name in files if (Path(root) / name).stat().st_mode & 0o004}
    assert found <= {"uuid", "subnets.json", "address-pool.json", "accelerator.json"}


async def test_overlay_and_image_directory(cloud: Cloud) -> None:
    """The latest of a directory; files, directories and the image's name laid over it."""
    await cloud.add_image("appliances/one")
    made = await cloud.create(
        image_name="appliances",
        overlay_files={"/etc/motd": b"hello from outside\n"},
        overlay_directories=["/srv/data"],
    )
    async with cloud.client() as client:
        info = await client.get_vm_info(made.ip_address)
        assert info.image_name == "appliances/one"
        async with client.connect_serial(made.ip_address) as port:
            port.write(b"cat /etc/motd /var/lib/initial-image; ls -d /srv/data; echo e''nd\n")
            await port.flush()
            seen = b""
            while b"\nend" not in seen.replace(b"\r", b""):
                seen += await port.read_some()
    for word in (b"hello from outside", b"appliances/one", b"/srv/data"):
        assert word in seen
