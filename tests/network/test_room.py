"""The room as the agent uses it: ports come and go, the agent dies and comes back."""

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import uvloop

from smallstack.network.book import AddressBook
from smallstack.network.bridge import Bridge, choose_bridge
from smallstack.network.dhcp.packet import MessageType
from smallstack.network.errors import (
    BridgeMissingError,
    NoUsableBridgeError,
    TapBusyError,
    TapError,
    VlanMissingError,
)
from smallstack.network.guard import TABLE
from smallstack.network.netlink import Netlink
from smallstack.network.room import BridgeSpec, Network, Port
from smallstack.network.tap import list_taps
from smallstack.proto.vm import Address, Subnet, VmInfo
from tests.conftest import Watch
from tests.network.frames import Discover
from tests.network.test_metadata_server import get, silent
from tests.network.test_taps import Wire, run
from tests.network.world import GATEWAY, SUBNET, Guest, mac_for_ip, plug, settled

pytestmark = [pytest.mark.root]
BRIDGE = BridgeSpec("br0", f"{GATEWAY}/24", create=True)
VMS: dict[str, "View"] = {}


@dataclass
class View:
    info: VmInfo
    user_data: Path | None = None
    credentials: Path | None = None


def port(ip: str) -> Port:
    return Port(mac_for_ip(ip), ip, SUBNET, "it")


async def open_network(directory: Path, running: Sequence[Port] = ()) -> Network:
    book = AddressBook.load(directory)
    if book.subnets.get(SUBNET.id) is None:
        await book.update_subnets(add=[SUBNET])
    network = await Network.open(book, [BRIDGE], lookup=VMS.get, control_port=6976)
    await network.install(running)
    for one in running:
        await network.adopt(one)
    return network


@pytest.fixture
async def network(namespace: None, tmp_path: Path) -> AsyncIterator[Network]:
    made = await open_network(tmp_path)
    yield made
    VMS.clear()
    await made.close(remove_guard=True)


def snapshot() -> tuple[list[str], str, list[str]]:
    """Interfaces, rules without their counters, descriptors."""
    rules = " ".join(word for word in run("nft list ruleset").split() if not word.isdigit())
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208
    return [name for _, name in socket.if_nameindex()], rules, descriptors


async def test_cycles_leave_nothing(network: Network) -> None:
    """Twenty guests, three at a time, each through attach, DHCP, detach; counted from outside."""
    before = snapshot()
    for start in range(10, 22, 3):
        ports = [port(f"198.51.100.{start + n}") for n in range(3)]
        taps = await asyncio.gather(*(network.attach(p) for p in ports))
        for p, tap in zip(ports, taps, strict=True):
            acknowledged = network.acknowledged(p.ip)
            Wire(tap).send(Discover(p.mac, options={80: b""}).frame())
            assert (await Wire(tap).reply()).message_type is MessageType.ACK
            await acknowledged
            await network.close_tap(tap)
        await asyncio.gather(*(network.detach(p.ip) for p in ports))
    assert settled(lambda: snapshot() == before), (snapshot(), before)
    assert not network.dhcp.leases
    assert not network.guard.state.guests


async def test_detach_is_complete_and_repeatable(network: Network) -> None:
    before = snapshot()
    tap = await network.attach(port("198.51.100.5"))
    waiting = network.acknowledged("198.51.100.5")
    with pytest.raises(TapBusyError):
        await network.attach(port("198.51.100.5"))
    assert len(network.dhcp.leases) == len(network.guard.state.guests) == 1
    await network.detach("198.51.100.5")
    await network.detach("198.51.100.5")
    await network.detach("198.51.100.77")
    assert waiting.cancelled()
    await network.close_tap(tap)
    assert settled(lambda: snapshot() == before)
    tap = await network.attach(port("198.51.100.5"))
    await network.close_tap(tap)
    await network.detach("198.51.100.5")


async def test_a_tap_that_goes_is_told_by_its_name(network: Network) -> None:
    """Whoever takes it away; other interfaces are none of it."""
    loop = asyncio.get_running_loop()
    gone: list[str] = []
    both: asyncio.Future[None] = loop.create_future()

    def listener(name: str) -> None:
        gone.append(name)
        if len(gone) == 2:
            both.set_result(None)

    network.on_tap_gone.append(listener)
    ports = [port(f"198.51.100.{n}") for n in (5, 6)]
    first, second = [await network.attach(one) for one in ports]
    await network.close_tap(first)
    run(f"ip link add other type bridge && ip link del other && ip link del {ports[1].tap}")
    async with asyncio.timeout(30):
        await both
    assert gone == [one.tap for one in ports]
    await network.close_tap(second)
    for one in ports:
        await network.detach(one.ip)


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_attach_leaves_nothing(network: Network, turns: int) -> None:
    before = snapshot()
    attaching = asyncio.create_task(network.attach(port("198.51.100.5")))
    for _ in range(turns):
        await asyncio.sleep(0)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    await network.netlink.run(lambda _: None)
    await network.netlink.run(lambda _: None)
    assert settled(lambda: snapshot() == before), (snapshot(), before)
    assert not network.dhcp.leases


async def test_a_guest_of_the_room(network: Network) -> None:
    """DHCP, metadata and the end of both, for a guest with a port made by hand."""
    guest = plug(network.bridges["br0"], "198.51.100.5")
    try:
        with pytest.raises(TapError, match="cannot make the tap ss-c6336405"):
            await network.attach(port(guest.ip))
        await adopt(network, guest)
        guest.set_address()
        assert await guest.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")
        await network.book.update_subnets(
            change=[msgspec.structs.replace(SUBNET, disable_metadata=True)]
        )
        assert await guest.run(lambda: settled(silent))
    finally:
        guest.close()


async def test_the_lease_can_be_kept(network: Network) -> None:
    tap = await network.attach(port("198.51.100.5"))
    waiting = network.acknowledged("198.51.100.5")
    await network.detach("198.51.100.5", keep_lease=True)
    await network.close_tap(tap)
    assert not waiting.done()
    tap = await network.attach(port("198.51.100.5"), lease=False)
    Wire(tap).send(Discover(port("198.51.100.5").mac, options={80: b""}).frame())
    await waiting
    await network.close_tap(tap)
    await network.detach("198.51.100.5")


async def adopt(network: Network, guest: Guest) -> None:
    """What `attach` does, but for the tap."""
    service = network.services["br0"]
    VMS[guest.ip] = View(VmInfo(address=Address(ip_address=guest.ip, mac_address=guest.mac)))
    await network.guard.allow(guest.port, guest.mac, guest.ip, service.mac)
    await service.add_guest(guest.ip, guest.mac)


async def test_uplinks_are_followed(network: Network) -> None:
    assert network.guard.state.uplinks == set()
    run("ip link add up0 type veth peer name up1 && ip link set up0 master br0")
    await until(lambda: network.guard.state.uplinks == {"up0"})
    assert '"up0"' in run(f"nft list set bridge {TABLE} uplinks")
    run("ip link del up0")
    await until(lambda: network.guard.state.uplinks == set())


async def test_addresses_are_followed(network: Network) -> None:
    """DHCP announces the bridge's address in the subnet, also one that came later."""
    lease = port("198.51.100.5")
    tap = await network.attach(lease)
    wire = Wire(tap)
    wire.send(Discover(lease.mac).frame())
    assert str((await wire.reply()).siaddr) == GATEWAY
    run("ip addr add 198.51.100.9/24 dev br0 && ip addr del 198.51.100.1/24 dev br0")
    run("ip addr replace 198.51.100.9/24 dev br0")  # the second went with the first
    await until(lambda: [str(a) for a in network.dhcp.addresses("br0")] == ["198.51.100.9"])
    wire.send(Discover(lease.mac).frame())
    assert str((await wire.reply()).siaddr) == "198.51.100.9"
    await network.close_tap(tap)


async def test_a_packet_filter_in_the_way_is_told(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("this kernel has no br_netfilter")
    run("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
    await network.warn_of_packet_filter()
    assert caplog.messages == []
    run("nft add table ip f && nft 'add chain ip f c { type filter hook forward priority 0 ; }'")
    await network.warn_of_packet_filter()
    assert "bridge-nf-call-iptables=0" in caplog.text
    caplog.clear()
    run("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    await network.warn_of_packet_filter()
    assert caplog.messages == []
    run("nft delete table ip f")


def test_under_uvloop(namespace: None, tmp_path: Path) -> None:
    """The whole way again on the loop that the daemon runs on."""

    async def main() -> None:
        network = await open_network(tmp_path)
        one = port("198.51.100.5")
        tap = await network.attach(one)
        Wire(tap).send(Discover(one.mac, options={80: b""}).frame())
        await network.acknowledged(one.ip)
        await network.close_tap(tap)
        await network.detach(one.ip)
        guest = plug(network.bridges["br0"], "198.51.100.6")
        await adopt(network, guest)
        guest.set_address()
        assert await guest.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")
        guest.close()
        VMS.clear()
        await network.close(remove_guard=True)

    uvloop.run(main())
    assert settled(lambda: {n for _, n in socket.if_nameindex()} == {"lo", "br0"})


async def until(condition: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(settled, condition)


async def test_errors(netlink: Netlink, tmp_path: Path) -> None:
    with pytest.raises(BridgeMissingError):
        await Network.open(
            AddressBook.load(tmp_path), [BridgeSpec("nowhere")], lookup=VMS.get, control_port=6976
        )
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with pytest.raises(NoUsableBridgeError, match="no usable bridge for subnet 'any'"):
        await Network.open(AddressBook.load(tmp_path), [], lookup=VMS.get, control_port=6976)
    assert run("nft list ruleset") == ""


async def test_a_subnet_without_a_bridge(network: Network) -> None:
    lost = msgspec.structs.replace(SUBNET, id="lost", vlan_id=9)
    with pytest.raises(VlanMissingError, match="is on VLAN 9, which no bridge carries: make a"):
        await network.attach(Port(mac_for_ip("198.51.100.5"), "198.51.100.5", lost))
    network.bridges["br0"] = dataclasses.replace(network.bridges["br0"], vlan_id=7)
    with pytest.raises(NoUsableBridgeError, match=r"for subnet 'lost' \(VLAN 9\): there are br0"):
        await network.attach(Port(mac_for_ip("198.51.100.5"), "198.51.100.5", lost))
    await network.install([Port(mac_for_ip("198.51.100.5"), "198.51.100.5", lost)])
    assert network.guard.state.guests == {}


AGENT = """
import asyncio, os, subprocess, sys
from pathlib import Path
from tests.network.test_room import open_network, port

async def main():
    network = await open_network(Path(sys.argv[1]))
    taps = [await network.attach(port("198.51.100.%d" % n)) for n in (5, 6)]
    # The second tap goes to a "QEMU" that outlives us.
    child = subprocess.Popen(["sleep", "1000"], pass_fds=[taps[1].fd], start_new_session=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def start_agent(directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, directory],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


async def test_kill_and_return(namespace: None, tmp_path: Path) -> None:
    """kill -9: cable, namespace and the unused tap go; the guest that runs stays guarded, and a
    new agent serves it again."""
    with start_agent(tmp_path) as agent:
        assert agent.stdout is not None
        child = int(agent.stdout.readline())
        try:
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            assert settled(
                lambda: {n for _, n in socket.if_nameindex()} == {"lo", "br0", "ss-c6336406"}
            )
            assert '"ss-c6336406" . 52:54:c6:33:64:06' in run("nft list ruleset")
            network = await open_network(tmp_path, running=[port("198.51.100.6")])
            rules = run("nft list ruleset")
            assert '"ss-c6336406" . 52:54:c6:33:64:06' in rules
            assert "ss-c6336405" not in rules
            assert await list_taps(network.netlink) == ["ss-c6336406"]
            assert [str(lease.ip) for lease in network.dhcp.leases] == ["198.51.100.6"]
            await network.detach("198.51.100.6")  # takes the tap away under the "QEMU"
            assert await list_taps(network.netlink) == []
            await network.close(remove_guard=True)
            assert settled(lambda: {n for _, n in socket.if_nameindex()} == {"lo", "br0"})
        finally:
            os.kill(child, signal.SIGKILL)


async def test_the_loop_is_not_held_up(network: Network, keeps_loop_free: Watch) -> None:
    """No step of attach or detach takes more than 5 ms of the loop thread's CPU time."""

    async def attach_and_detach(_: int) -> None:
        for n in range(30, 40):
            tap = await network.attach(port(f"198.51.100.{n}"))
            await network.close_tap(tap)
            await network.detach(f"198.51.100.{n}")

    await keeps_loop_free(attach_and_detach)


def test_port_without_an_address() -> None:
    assert Port("52:54:00:00:00:01", "", Subnet(id="x")).tap == "ssm525400000001"


def test_the_bridge_of_a_subnet() -> None:
    """br@<subnet>, then the bridge of the VLAN, then that of VLAN 0 with a tag."""
    plain, own = Bridge("br0", 1, 1500), Bridge("br@x", 2, 1500, vlan_id=5)
    tagged = Bridge("br5", 3, 1500, vlan_id=5)
    every = [plain, tagged, own]
    assert choose_bridge("x", 0, every) == (own, None)
    assert choose_bridge("y", 5, every) == (tagged, None)
    assert choose_bridge("y", 0, every) == (plain, None)
    assert choose_bridge("y", 6, every) == (plain, 6)
    with pytest.raises(NoUsableBridgeError, match=r"\(VLAN 5\): there are br@x"):
        choose_bridge("y", 5, [own])
