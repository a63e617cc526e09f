"""Bad input and trouble: one clear line, nothing left behind, nothing lost."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.client.errors import ServiceError
from smallstack.control.sandbox import DaemonError
from smallstack.proto.enums import MachineType, State
from smallstack.proto.hypervisor.every import (
    ChangeAddressPoolRequest,
    CreateVmRequest,
    UpdateSubnetsRequest,
)
from smallstack.proto.vm import Address, Volume
from smallstack.srpc.errors import ConnectionClosedError
from tests.conftest import PASSES
from tests.integration import leaks
from tests.integration.cloud import (
    BRIDGE,
    IMAGE_PORT,
    PORT,
    SECOND,
    Cloud,
    addresses,
    request,
)

pytestmark = [pytest.mark.root, pytest.mark.qemu]


@asynccontextmanager
async def refused(cloud: Cloud, text: str) -> AsyncIterator[None]:
    """What is done inside is refused with a line that begins so, and leaves nothing."""
    before = cloud.look()
    with pytest.raises(ServiceError) as raised:
        yield
    said = str(raised.value)
    assert said.startswith(text), said
    assert "\n" not in said
    assert "Traceback" not in said
    # Descriptors and caches of the first contact with the image server may stay.
    before.descriptors.clear()
    assert _left(cloud, before) == ""


def _left(cloud: Cloud, before: leaks.Snapshot) -> str:
    def look() -> leaks.Snapshot:
        found = leaks.take(cloud.pid, [cloud.state])
        found.descriptors.clear()
        return found

    return before.difference(look())


REFUSALS: list[tuple[Callable[[], CreateVmRequest], str]] = [
    (lambda: request(image_name="none", image_timeout=SECOND // 10), "timeout getting image"),
    (lambda: request(image_name="", minimum_free_bytes=0), "no image specified"),
    (lambda: request(subnet_id="none"), "subnet: none does not exist"),
    (lambda: request(memory_in_mib=0), "no memory specified"),
    (lambda: request(memory_in_mib=1 << 40), "insufficient unallocated memory"),
    (lambda: request(milli_cpus=0), "no CPUs specified"),
    (lambda: request(milli_cpus=1_000_000), "insufficient unallocated CPU"),
    (lambda: request(milli_cpus=2000, virtual_cpus=1), "VirtualCPUs must be at least 2"),
    (lambda: request(minimum_free_bytes=1 << 50), "not enough free space for 1 PiB volume"),
    (lambda: request(minimum_free_bytes=0), "root file-system too large"),
    (lambda: request(storage_indices=[3]), "storage[3] does not have"),
    (lambda: request(hostname="a b"), "hostname: a b contains invalid character: ' '"),
    (lambda: request(hostname="a\nb"), "hostname: a b contains invalid character: '\\n'"),
    (lambda: request(extra_kernel_options="a\0b"), "ExtraKernelOptions must be one line"),
    (lambda: request(machine_type=MachineType(77)), "UNKNOWN MachineType 77"),
    (lambda: request(machine_type=MachineType.PC), "machine type pc is not supported yet"),
    (lambda: request(secondary_volumes=[Volume(size=1 << 24)]), "a secondary volume is not"),
    (lambda: request(address=Address(ip_address="203.0.113.9")), "address: 203.0.113.9 not found"),
    (lambda: request(overlay_files={"/etc/passwd/x": b"y"}), "overlay path '/etc/passwd/x'"),
    (lambda: request(overlay_files={"/big": b"x" * (40 << 20)}), "the root of"),
]


async def test_refusals(cloud: Cloud) -> None:
    """Each with its text; data that the client sends anyway is drained, the connection lives."""
    await cloud.destroy((await cloud.create(do_not_start=True)).ip_address)
    async with cloud.client() as client:
        for make, text in REFUSALS:
            async with refused(cloud, text):
                async for _ in client.create_vm(make(), user_data=b"u" * 300_000):
                    pass
        wanted = request(image_name="", memory_in_mib=0)
        async with refused(cloud, "no memory specified"):
            async for _ in client.create_vm(wanted, image_data=b"i" * 3_000_000, user_data=b"u"):
                pass
        assert await client.list_vms() == []


async def test_a_disabled_hypervisor(cloud: Cloud) -> None:
    ip = (await cloud.create(do_not_start=True)).ip_address
    (cloud.state / "disabled").touch()
    async with cloud.client() as client:
        async with refused(cloud, "Hypervisor is disabled"):
            async for _ in client.create_vm(request(), user_data=b"u" * 100_000):
                pass
        async with refused(cloud, "Hypervisor is disabled"):
            await client.start_vm(ip)
        await client.destroy_vm(ip)


async def test_no_free_address_and_the_pool(cloud: Cloud) -> None:
    taken = [(await cloud.create(do_not_start=True)).ip_address for _ in range(4)]
    assert taken == [a.ip_address for a in addresses(4)]
    async with cloud.client() as client:
        async with refused(cloud, "no free addresses in pool: add some with"):
            async for _ in client.create_vm(request()):
                pass
        removal = ChangeAddressPoolRequest(addresses_to_remove=[Address(ip_address=taken[0])])
        async with refused(cloud, f"cannot remove {taken[0]} from free list because it is used"):
            await client.change_address_pool(removal)
        async with refused(cloud, f"cannot delete subnet: test: VM {taken[0]} is in it"):
            await client.update_subnets(UpdateSubnetsRequest(delete=["test"]))
        async with refused(cloud, "duplicate IP address: 198.51.100.2"):
            await client.change_address_pool(
                ChangeAddressPoolRequest(addresses_to_add=addresses(1))
            )
        await client.destroy_vm(taken[2])
    # Given back, it is the first that is free.
    assert (await cloud.create(do_not_start=True)).ip_address == taken[2]


async def test_image_server_down(cloud: Cloud) -> None:
    assert cloud.image_server is not None
    await cloud.image_server.stop()
    async with refused(cloud, "error connecting to image server: localhost:6971: "):
        await cloud.create()
    await cloud.start_image_server()
    await cloud.destroy((await cloud.create(do_not_start=True)).ip_address)
    await cloud.image_server.stop()
    async with refused(cloud, "error connecting to image server: localhost:6971: "):
        await cloud.create()


class Cut:
    """A relay to the image server that breaks off after so many bytes from it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cuts = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # From another address: a local connection would move to a Unix socket, past us.
        where = ("127.0.0.2", 0)
        up, down = await asyncio.open_connection("127.0.0.1", IMAGE_PORT, local_addr=where)
        tasks = [
            asyncio.create_task(self._pass_on(reader, down, 1 << 40)),
            asyncio.create_task(self._pass_on(up, writer, self.limit)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for end in (down, writer):
            end.transport.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int
    ) -> None:
        while limit > 0 and (data := await source.read(min(65536, limit))):
            sink.write(data)
            await sink.drain()
            limit -= len(data)
        self.cuts += limit <= 0


@pytest.mark.parametrize("limit", [2_000, 20_000, 200_000])
async def test_image_server_cut_in_mid_transfer(bare_cloud: Cloud, limit: int) -> None:
    """In the handshake, in the tree, in the objects. The next create goes on with what came."""
    cloud = bare_cloud
    cut = Cut(limit)
    relay = await asyncio.start_server(cut, "127.0.0.1", 7971)
    cloud.image_address = "localhost:7971"
    await cloud.start_hypervisor()
    await cloud.set_up()
    text = "error connecting to image server: localhost:7971: "
    if limit == 200_000:
        text = "cannot fetch objects from localhost:7971: "
    async with refused(cloud, text):
        await cloud.create()
    assert cut.cuts >= 1
    cut.limit = 1 << 40
    await cloud.destroy((await cloud.create()).ip_address)
    relay.close()
    await relay.wait_closed()


def _objects(store: Path) -> list[Path]:
    """Every object of a store or cache, the largest last."""
    found = [p for p in store.rglob("*") if p.is_file() and len(p.name) in {124, 126}]
    return sorted(found, key=lambda path: path.stat().st_size)


def _damage(path: Path) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    path.chmod(mode)


async def test_corrupt_in_the_cache(cloud: Cloud) -> None:
    """Found when it is used: fetched again, nobody is told."""
    await cloud.destroy((await cloud.create()).ip_address)
    await cloud.stop_hypervisor()
    for brick in (cloud.state / "volumes" / "bricks").iterdir():
        brick.unlink()
    for path in _objects(cloud.state / "objects")[-3:]:
        _damage(path)
    await cloud.start_hypervisor()
    made = await cloud.create()
    assert not made.dhcp_timed_out
    assert "corrupt" in cloud.log
    await cloud.destroy(made.ip_address)


async def test_missing_in_the_cache(cloud: Cloud) -> None:
    await cloud.destroy((await cloud.create()).ip_address)
    _objects(cloud.state / "objects")[-1].unlink()  # the kernel
    await cloud.stop_hypervisor()
    await cloud.start_hypervisor()
    await cloud.destroy((await cloud.create()).ip_address)


async def test_corrupt_and_missing_on_the_server(cloud: Cloud) -> None:
    largest = _objects(cloud.directory / "imageserver")[-1]
    good = largest.read_bytes()
    _damage(largest)
    async with refused(cloud, f"object {largest.parent.parent.name}"):
        await cloud.create()
    largest.unlink()
    with pytest.raises(ServiceError) as raised:
        await cloud.create()
    assert "object" in str(raised.value)
    assert "localhost:6971" in str(raised.value)
    largest.write_bytes(good)
    assert cloud.image_server is not None
    await cloud.image_server.stop()
    await cloud.start_image_server()
    await cloud.destroy((await cloud.create()).ip_address)


async def test_bridge_missing(cloud: Cloud) -> None:
    """Taken away under the agent, and at its start."""
    await cloud.destroy((await cloud.create()).ip_address)
    _ip("link", "del", BRIDGE)
    async with refused(cloud, f"bridge '{BRIDGE}' does not exist"):
        await cloud.create()
    await cloud.stop_hypervisor()
    old = cloud.hypervisor
    with pytest.raises(DaemonError, match="bridge 'none' does not exist: make it"):
        await cloud.start_hypervisor(bridge="none", bridge_address="")
    cloud.hypervisor = old
    await cloud.start_hypervisor()
    await cloud.destroy((await cloud.create()).ip_address)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (None, "machine 198.51.100.2: /none/qemu was not found"),
        ("echo no such device >&2; exit 3", "machine 198.51.100.2: QEMU ended at its start"),
        ("kill -SEGV $$", "machine 198.51.100.2: QEMU ended at its start"),
        ("exec sleep 1000", "machine 198.51.100.2: QEMU did not answer on its monitor within 1 s"),
    ],
    ids=["missing", "refusing", "dying", "hanging"],
)
async def test_qemu_in_trouble(
    bare_cloud: Cloud, tmp_path: Path, script: str | None, text: str
) -> None:
    cloud = bare_cloud
    tmp_path.chmod(0o755)
    qemu = _script(Path("/tmp") / f"qemu-{tmp_path.name}", script) if script else "/none/qemu"
    try:
        await cloud.start_hypervisor(qemu=qemu, qemu_start_timeout="1s")
        await cloud.set_up(count=1)
        async with refused(cloud, text):
            await cloud.create()
        async with refused(cloud, text):  # the address is free again
            await cloud.create()
        ip = (await cloud.create(do_not_start=True)).ip_address
        async with cloud.client() as client:
            with pytest.raises(ServiceError, match="machine 198"):
                await client.start_vm(ip)
            assert (await client.get_vm_info(ip)).state is State.FAILED_TO_START
            with pytest.raises(ServiceError, match="VM failed to start"):
                await client.reboot_vm(ip)
            await client.destroy_vm(ip)
    finally:
        if script:
            Path(qemu).unlink()


async def test_a_kernel_that_panics(cloud: Cloud) -> None:
    """Told with the guest's own last words, long before the time for DHCP is over."""
    await cloud.destroy((await cloud.create()).ip_address)
    async with refused(
        cloud, "VM 198.51.100.3 crashed before it asked for an address by DHCP; the last on its"
    ):
        await cloud.create(extra_kernel_options="init=/none", dhcp_timeout=600 * SECOND)


async def test_a_guest_that_never_asks_for_dhcp(cloud: Cloud) -> None:
    """Reported, and kept."""
    made = await cloud.create(extra_kernel_options="init=/bin/sh", dhcp_timeout=2 * SECOND)
    assert made.dhcp_timed_out
    assert (await cloud.states())[made.ip_address] is State.RUNNING
    await cloud.destroy(made.ip_address)


async def test_no_wait_and_no_lease(cloud: Cloud) -> None:
    """DhcpTimeout 0: not waited for; below 0: not even a lease."""
    now = await cloud.create(dhcp_timeout=0)
    assert not now.dhcp_timed_out
    async with cloud.client() as client:
        assert await client.probe_vm_port(now.ip_address, 80, 60 * SECOND)
    never = await cloud.create(dhcp_timeout=-1)
    async with cloud.client() as client:
        assert not await client.probe_vm_port(never.ip_address, 80, 2 * SECOND)
    for made in (now, never):
        await cloud.destroy(made.ip_address)


async def test_a_guest_that_does_not_stop_is_ended(cloud: Cloud) -> None:
    """By a timer that dies with its stop: the next stop has its full time again."""
    made = await cloud.create(extra_kernel_options="init=/bin/sh", dhcp_timeout=0)
    async with cloud.client() as client:
        stopping = asyncio.create_task(client.stop_vm(made.ip_address))
        while (await cloud.states())[made.ip_address] is not State.STOPPING:
            pass
        async with cloud.client() as other:
            with pytest.raises(ServiceError, match="VM is stopping"):
                await other.destroy_vm(made.ip_address)
        await stopping
        assert (await client.get_vm_info(made.ip_address)).state is State.STOPPED
        await client.destroy_vm(made.ip_address)


async def test_mutations_are_blocked_during_a_create(cloud: Cloud) -> None:
    async with cloud.client() as creator, cloud.client() as client:
        creating = creator.create_vm(
            request(extra_kernel_options="init=/bin/sh", dhcp_timeout=3 * SECOND)
        )
        while not (reply := await anext(creating)).ip_address:
            pass
        ip = reply.ip_address
        assert ip in await client.list_vms()
        for act in (client.stop_vm, client.destroy_vm, client.reboot_vm, client.acknowledge_vm):
            with pytest.raises(ServiceError, match=r"^mutations blocked$"):
                await act(ip)
        async for reply in creating:
            assert reply.dhcp_timed_out
        await client.destroy_vm(ip)


async def test_rubbish_on_the_port(cloud: Cloud) -> None:
    """Malformed, oversized, truncated: the agent serves on."""
    async with cloud.client() as client:
        for data in (b"\xff" * 4096, b"\xf8" + b"\x7f" * 8, b"\x05\x01\x02", b"", b"\x00" * 4096):
            async with cloud.client() as victim:
                with pytest.raises(ConnectionClosedError):
                    async with victim.client.raw("Hypervisor.CreateVm") as conn:
                        conn.write(data)
                        await conn.flush()
                        if len(data) < 64:
                            conn.close()
                        await conn.read_exactly(1)
                        await conn.read_exactly(1 << 20)
            assert await client.list_vms() == []


async def test_the_end_in_order(cloud: Cloud) -> None:
    """SIGTERM in the middle of a create: undone; the VMs that are there run on."""
    kept = await cloud.create()
    pids = cloud.qemu_pids()
    async with cloud.client() as client:
        creating = client.create_vm(
            request(extra_kernel_options="init=/bin/sh", dhcp_timeout=600 * SECOND)
        )
        while not (await anext(creating)).ip_address:
            pass
        assert cloud.hypervisor is not None
        cloud.hypervisor.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosedError):
            async for _ in creating:
                pass
    assert await cloud.died() == 0
    assert cloud.qemu_pids() == pids
    assert list((cloud.state / "journals").iterdir()) == []
    await cloud.start_hypervisor()
    assert await cloud.states() == {kept.ip_address: State.RUNNING}
    await cloud.destroy(kept.ip_address)


CYCLES = int(os.environ.get("SMALLSTACK_TEST_CYCLES", "8"))


async def test_cycles_leave_nothing(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """Links, descriptors, loop devices, namespaces, rules, files, processes, from outside.

    And the agent's loop stays free. Its watchdog also counts what a plain system call costs now and
    then, probably others' work done in its midst: 16 times in 950 creates where this was written.
    Code of ours that holds the loop does so every time, in each of three rounds.
    """
    for _ in range(2):
        await cloud.destroy((await cloud.create()).ip_address)
    before = cloud.look()
    held: list[float] = []
    while len(held) < PASSES and (not held or held[-1] > CYCLES // 8):
        seen = await _metric("smallstack_loop_stretches_total")
        for _ in range(CYCLES):
            await cloud.destroy((await cloud.create()).ip_address)
        held.append(await _metric("smallstack_loop_stretches_total") - seen)
    assert cloud.left(before) == ""
    assert await _metric("smallstack_creates") == CYCLES * len(held) + 2
    with capsys.disabled():
        print(f"\n{CYCLES * len(held)} cycles left nothing; loop held for over 5 ms: {held} times")
    told = [line for line in cloud.log.splitlines() if "event loop" in line]
    assert min(held) <= CYCLES // 8, told


async def _metric(name: str) -> float:
    """A figure of the agent's /metrics page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    (line,) = [line for line in page.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])
