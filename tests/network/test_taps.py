"""Taps, the guard and DHCP together, with the test as the guest behind a real tap."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smallstack.network.bridge import Bridge, delete_bridge, ensure_bridge, list_bridges
from smallstack.network.dhcp.leases import Event
from smallstack.network.dhcp.packet import MessageType, Option, Packet
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.errors import (
    BridgeMissingError,
    DhcpPortError,
    GuardError,
    NotABridgeError,
    TapBusyError,
    TapError,
)
from smallstack.network.guard import DHCP_BURST, DHCP_PER_SECOND, Guard, Guest
from smallstack.network.netlink import Netlink
from smallstack.network.tap import (
    Tap,
    create_tap,
    delete_tap,
    holders,
    list_taps,
    tap_name,
)
from tests.network.frames import VNET_HEADER, Discover, arp_request, dhcp_reply, ethernet, ipv4, udp
from tests.network.world import SUBNET, settled

pytestmark = [pytest.mark.root]
IP, MAC = "198.51.100.5", "52:54:c6:33:64:05"
OTHER_IP, OTHER_MAC = "198.51.100.6", "52:54:c6:33:64:06"


class Wire:
    """The guest's end of a tap: whole frames, without the virtio header."""

    def __init__(self, tap: Tap) -> None:
        self.fd = tap.fd

    def send(self, frame: bytes) -> None:
        os.write(self.fd, VNET_HEADER + frame)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.fd, readable.set)
        try:
            async with asyncio.timeout(10):
                await readable.wait()
        finally:
            loop.remove_reader(self.fd)
        return os.read(self.fd, 4096)[len(VNET_HEADER) :]

    async def reply(self) -> Packet:
        while (found := dhcp_reply(await self.receive())) is None:
            pass
        return found


@pytest.fixture
async def server(bridge: Bridge) -> AsyncIterator[DhcpServer]:
    made = DhcpServer()
    made.listen(bridge.name, bridge.addresses)
    yield made
    await made.close()


async def make(netlink: Netlink, guard: Guard, bridge: Bridge, ip: str, mac: str) -> Tap:
    tap = await create_tap(netlink, tap_name(ip), bridge, mac)
    await guard.allow(tap.name, mac, ip)
    return tap


async def test_a_lease_through_a_tap(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    server.add_lease(MAC, IP, SUBNET, "it")
    tap = await make(netlink, guard, bridge, IP, MAC)
    wire = Wire(tap)
    acknowledged = server.acknowledged(IP)
    discover = Discover(MAC, options={Option.CLIENT_ID: b"\x01abc", Option.PARAMETERS: b"\x06\x01"})
    wire.send(discover.frame())
    offer = await wire.reply()
    assert offer.message_type is MessageType.OFFER
    assert (offer.xid, str(offer.yiaddr), str(offer.siaddr)) == (discover.xid, IP, "198.51.100.1")
    assert list(offer.options) == [53, 54, 51, 61, 6, 1]
    assert not acknowledged.done()
    discover.kind = MessageType.REQUEST
    discover.options[Option.REQUESTED_IP] = offer.yiaddr.packed
    discover.options[Option.SERVER_ID] = offer.options[Option.SERVER_ID]
    wire.send(discover.frame())
    assert (await wire.reply()).message_type is MessageType.ACK
    await acknowledged
    discover.options[Option.REQUESTED_IP] = b"\xc6\x33\x64\x63"
    wire.send(discover.frame())
    refusal = await wire.reply()
    assert refusal.message_type is MessageType.NAK
    assert list(refusal.options) == [53, 54, 61]
    tap.close()


@pytest.mark.parametrize(
    "forged",
    [
        Discover(OTHER_MAC),
        Discover(OTHER_MAC, chaddr=MAC),
        Discover(MAC, chaddr=OTHER_MAC),
        Discover(MAC, source=OTHER_IP),
        Discover(OTHER_MAC, tags=b"\x81\x00\x00\x00"),
        Discover(OTHER_MAC, tags=b"\x81\x00\x00\x00\x81\x00\x00\x00"),
        Discover(OTHER_MAC, tags=b"\x88\xa8\x00\x00\x81\x00\x00\x00"),
        Discover(OTHER_MAC, tags=b"\x81\x00\x00\x05"),
    ],
    ids=lambda d: f"{d.mac[-2:]}-{(d.chaddr or '')[-2:]}-{d.source[-1:]}-{d.tags.hex()}",
)
async def test_forged_dhcp_is_dropped(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer, forged: Discover
) -> None:
    """Nothing that claims to be another guest reaches the server; the next true request does."""
    for ip, mac in ((IP, MAC), (OTHER_IP, OTHER_MAC)):
        server.add_lease(mac, ip, SUBNET)
    tap = await make(netlink, guard, bridge, IP, MAC)
    seen: list[bytes] = []
    server.watchers.append(lambda _bridge, data: seen.append(data))
    wire = Wire(tap)
    wire.send(forged.frame())
    wire.send(Discover(MAC, xid=7).frame())
    assert (await wire.reply()).xid == 7
    assert [data[4:8] for data in seen] == [(7).to_bytes(4, "big")]
    tap.close()


async def test_without_the_guard_forgery_would_work(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    """The counter-proof: what the test above sends is a request the server would answer."""
    server.add_lease(OTHER_MAC, OTHER_IP, SUBNET)
    tap = await make(netlink, guard, bridge, IP, MAC)
    await guard.remove()
    wire = Wire(tap)
    for tags in (b"", b"\x81\x00\x00\x00", b"\x81\x00\x00\x00\x81\x00\x00\x00"):
        wire.send(Discover(OTHER_MAC, tags=tags).frame())
        assert str((await wire.reply()).yiaddr) == OTHER_IP
    tap.close()


async def test_fragments_do_not_pass_the_guard(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    """Split at the earliest place, behind the UDP header; the kernel would join the pieces."""
    server.add_lease(OTHER_MAC, OTHER_IP, SUBNET)
    server.add_lease(MAC, IP, SUBNET)
    tap = await make(netlink, guard, bridge, IP, MAC)
    wire = Wire(tap)
    whole = udp(68, 67, Discover(OTHER_MAC).message())
    for part, field in ((whole[:8], 0x2000), (whole[8:], 0x0001)):
        packet = ipv4("0.0.0.0", "255.255.255.255", 17, part, field)
        wire.send(ethernet("ff:ff:ff:ff:ff:ff", OTHER_MAC, 0x0800, packet))
    wire.send(Discover(MAC, xid=7).frame())
    assert (await wire.reply()).xid == 7
    assert sum(server.counters.values()) == 1
    tap.close()


async def test_a_tap_unknown_to_the_guard_gets_nothing(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    server.add_lease(MAC, IP, SUBNET)
    tap = await create_tap(netlink, tap_name(IP), bridge, MAC)
    wire = Wire(tap)
    wire.send(Discover(MAC, xid=6).frame())
    await guard.allow(tap.name, MAC, IP)
    wire.send(Discover(MAC, xid=7).frame())
    assert (await wire.reply()).xid == 7
    await guard.revoke(tap.name)
    await guard.revoke(tap.name)
    wire.send(Discover(MAC, xid=8).frame())
    await guard.allow(tap.name, MAC, IP)
    wire.send(Discover(MAC, xid=9).frame())
    assert (await wire.reply()).xid == 9
    tap.close()


async def test_an_external_address_needs_only_the_mac(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    server.add_lease(MAC, IP, SUBNET)
    server.add_lease(OTHER_MAC, OTHER_IP, SUBNET)
    tap = await create_tap(netlink, tap_name("", MAC), bridge, MAC)
    assert tap.name == "ssm5254c6336405"
    await guard.allow(tap.name, MAC, "")
    wire = Wire(tap)
    wire.send(Discover(OTHER_MAC, xid=1).frame())
    wire.send(Discover(MAC, chaddr=OTHER_MAC, xid=2).frame())
    wire.send(Discover(MAC, source="203.0.113.9", xid=3).frame())
    assert (await wire.reply()).xid == 3
    await guard.revoke(tap.name)
    tap.close()


async def test_nothing_else_is_filtered(netlink: Netlink, bridge: Bridge, guard: Guard) -> None:
    """Two guests talk as they like: other ports, other people's addresses, tags, ARP."""
    first = await make(netlink, guard, bridge, IP, MAC)
    second = await make(netlink, guard, bridge, OTHER_IP, OTHER_MAC)
    one, two = Wire(first), Wire(second)
    for frame in (
        arp_request(MAC, "203.0.113.9", OTHER_IP),
        ethernet(
            "ff:ff:ff:ff:ff:ff", MAC, 0x0800, ipv4("203.0.113.9", OTHER_IP, 17, udp(1, 53, b"x"))
        ),
        ethernet(
            "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:09", 0x0800, ipv4(IP, OTHER_IP, 6, bytes(20))
        ),
        ethernet("ff:ff:ff:ff:ff:ff", MAC, 0x86DD, bytes.fromhex("6000000000003b40") + bytes(32)),
        ethernet("ff:ff:ff:ff:ff:ff", MAC, 0x88B5, b"anything"),
    ):
        one.send(frame)
        while (got := await two.receive())[:14] != frame[:14] or frame not in got:
            pass
    first.close()
    second.close()


async def test_forged_server_replies_are_dropped(
    netlink: Netlink, bridge: Bridge, guard: Guard
) -> None:
    """A guest cannot send a DHCP reply, or as the metadata service, under a name not its own."""
    first = await make(netlink, guard, bridge, IP, MAC)
    second = await make(netlink, guard, bridge, OTHER_IP, OTHER_MAC)
    one, two = Wire(first), Wire(second)
    everyone = "255.255.255.255"
    one.send(
        ethernet(
            "ff:ff:ff:ff:ff:ff", MAC, 0x0800, ipv4("198.51.100.1", everyone, 17, udp(67, 68, b"a"))
        )
    )
    one.send(
        ethernet("ff:ff:ff:ff:ff:ff", MAC, 0x0800, ipv4("169.254.169.254", OTHER_IP, 6, bytes(20)))
    )
    one.send(arp_request(MAC, "169.254.169.254", OTHER_IP))
    last = ethernet("ff:ff:ff:ff:ff:ff", MAC, 0x88B5, b"the last")
    one.send(last)
    while (got := await two.receive()) != last:
        assert packed_source(got) != MAC, got
    first.close()
    second.close()


def packed_source(frame: bytes) -> str:
    return frame[6:12].hex(":")


async def test_life_of_a_tap(nothing_left: None, netlink: Netlink, bridge: Bridge) -> None:
    tap = await create_tap(netlink, tap_name(IP), bridge, MAC, mtu=1400)
    assert tap.name == "ss-c6336405"
    assert await list_taps(netlink) == [tap.name]
    assert list(holders(tap.name)) == [os.getpid()]
    shown = run(f"ip -d link show {tap.name}")
    for word in ("UP", "mtu 1400", "master br0", "pi off vnet_hdr on persist off", "fe:54:c6:33"):
        assert word in shown, shown
    with pytest.raises(TapBusyError, match=rf"process {os.getpid()} holds it"):
        await create_tap(netlink, tap.name, bridge, MAC)
    copy = os.dup(tap.fd)
    tap.close()
    tap.close()
    assert await list_taps(netlink) == ["ss-c6336405"]  # until the last holder is gone
    os.close(copy)
    assert settled(lambda: not any(n == "ss-c6336405" for _, n in socket.if_nameindex()))
    tap = await create_tap(netlink, tap_name(IP), bridge)
    assert tap.mtu == 1500
    assert await delete_tap(netlink, tap.name)
    assert not await delete_tap(netlink, tap.name)
    tap.close()


async def test_a_persistent_leftover_is_taken_over(
    nothing_left: None, netlink: Netlink, bridge: Bridge
) -> None:
    run("ip tuntap add ss-c6336405 mode tap vnet_hdr")
    tap = await create_tap(netlink, "ss-c6336405", bridge, MAC)
    tap.close()


async def test_a_cancelled_creation_leaves_no_tap(
    nothing_left: None, netlink: Netlink, bridge: Bridge
) -> None:
    for turns in range(4):
        creating = asyncio.create_task(create_tap(netlink, tap_name(IP), bridge, MAC))
        for _ in range(turns):
            await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await netlink.run(lambda _: None)
        await netlink.run(lambda _: None)
        assert settled(lambda: not any(n.startswith("ss-") for _, n in socket.if_nameindex()))


async def test_bridges(netlink: Netlink) -> None:
    with pytest.raises(BridgeMissingError, match="bridge 'br7' does not exist"):
        await ensure_bridge(netlink, "br7")
    with pytest.raises(NotABridgeError, match="'lo' is a physical interface"):
        await ensure_bridge(netlink, "lo")
    made = await ensure_bridge(netlink, "br7", "203.0.113.1/24", create=True)
    again = await ensure_bridge(netlink, "br7", "203.0.113.1/24", create=True)
    assert (made.created, again.created) == (True, False)
    assert made.index == again.index
    assert [str(a) for a in again.addresses] == ["203.0.113.1/24"]
    run("ip link add up0 type veth peer name up1 && ip link set up1 master br7")
    (listed,) = await list_bridges(netlink)
    assert (listed.vlan_id, listed.uplinks) == (0, ("up1",))
    await delete_bridge(netlink, "br7")
    await delete_bridge(netlink, "br7")
    with pytest.raises(BridgeMissingError):
        await create_tap(netlink, "ss-00000001", made)
    other = Bridge("lo", made.index, 1500)
    with pytest.raises((TapError, BridgeMissingError)):
        await create_tap(netlink, "ss-00000001", other)
    assert await list_taps(netlink) == []


async def test_the_vlan_of_a_bridge(netlink: Netlink) -> None:
    made = await ensure_bridge(netlink, "br7", create=True)
    run("ip link add up0 type veth peer name up1")
    try:
        run("ip link add link up0 name up0.7 type vlan id 7")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no VLAN interfaces")
    run("ip link set up0.7 master br7")
    (listed,) = await list_bridges(netlink)
    assert (listed.index, listed.vlan_id, listed.uplinks) == (made.index, 7, ("up0.7",))


async def test_a_flood_of_requests_is_cut_off(
    netlink: Netlink, bridge: Bridge, guard: Guard, server: DhcpServer
) -> None:
    """One guest floods; another is served as ever."""
    server.add_lease(OTHER_MAC, OTHER_IP, SUBNET)
    first = await make(netlink, guard, bridge, IP, MAC)
    second = await make(netlink, guard, bridge, OTHER_IP, OTHER_MAC)
    flood, wire = Wire(first), Wire(second)
    begin = time.monotonic()
    for _ in range(2000):
        flood.send(Discover(MAC).frame())
    wire.send(Discover(OTHER_MAC, xid=7).frame())
    assert (await wire.reply()).xid == 7
    allowed = DHCP_BURST + DHCP_PER_SECOND * (time.monotonic() - begin) + 1
    assert 1 <= server.counters["unknown client"] <= allowed
    first.close()
    second.close()


async def test_a_thousand_guests_in_one_transaction(netlink: Netlink, guard: Guard) -> None:
    guests = [
        Guest(
            f"ss-{n:08x}",
            f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}",
            f"10.0.{n >> 8}.{n & 255}",
            MAC,
        )
        for n in range(1000)
    ]
    await guard.install(guests=guests)
    keys = await netlink.run(lambda sockets: sockets.nft.elements("smallstack", "dhcp"))
    assert len(keys) == len(set(keys)) == 2000
    await guard.remove()
    assert run("nft list ruleset") == ""


async def test_a_refused_transaction_changes_nothing(netlink: Netlink, guard: Guard) -> None:
    await guard.allow("ss-c6336405", MAC, IP)
    before = run("nft list ruleset")
    run("nft delete element bridge smallstack hardware '{ \"ss-c6336405\" . 52:54:c6:33:64:05 }'")
    broken = run("nft list ruleset")
    assert broken != before
    with pytest.raises(GuardError, match=r"cannot shut 198.51.100.5 out: .*No such file"):
        await guard.revoke("ss-c6336405")
    assert run("nft list ruleset") == broken
    await guard.install(guests=guard.state.guests.values())
    assert run("nft list ruleset") == before
    await guard.revoke("ss-c6336405")


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


async def test_two_servers_cannot_share_a_bridge(bridge: Bridge, server: DhcpServer) -> None:
    other = DhcpServer()
    with pytest.raises(DhcpPortError, match="Address already in use; is another DHCP server"):
        other.listen(bridge.name)
    with pytest.raises(BridgeMissingError):
        other.listen("nowhere")
    await other.close()


async def test_waiting_ends_with_the_lease(server: DhcpServer) -> None:
    server.add_lease(MAC, IP, SUBNET)
    waiting, replaced = server.acknowledged(IP), server.acknowledged(OTHER_IP)
    server.add_lease(OTHER_MAC, OTHER_IP, SUBNET)
    assert not replaced.done()
    server.add_lease(OTHER_MAC, "198.51.100.7", SUBNET)
    assert replaced.cancelled()
    server.remove_lease(IP)
    server.remove_lease(IP)
    assert waiting.cancelled()
    closed = server.acknowledged(IP)
    await server.close()
    assert closed.cancelled()


async def test_what_the_guard_looks_like(guard: Guard, bridge: Bridge) -> None:
    """`nft` reads the table; a second install replaces it; removal leaves nothing."""
    await guard.allow("ss-c6336405", MAC, IP, "06:00:00:00:00:01")
    await guard.allow("ss-c6336405", MAC, IP, "06:00:00:00:00:02")
    await guard.set_uplinks(["eth7", "eth8"])
    await guard.set_uplinks(["eth8", "eth9"])
    text = run("nft list ruleset")
    for line in (
        'elements = { "ss-c6336405" . 52:54:c6:33:64:05 . 198.51.100.5 : 06:00:00:00:00:02 }',
        'elements = { "eth8",\n\t\t\t     "eth9" }',
        "ip daddr 169.254.169.254 ether daddr set iifname . ether saddr . ip saddr map @metadata",
        'iifname "ss-*" jump guest',
    ):
        assert line in text or line.replace('"eth8"', '"eth9"', 1) in text, text
    state = guard.state
    await guard.install(guests=state.guests.values(), uplinks=state.uplinks)
    assert sorted(run("nft list ruleset").split()) == sorted(text.split())
    await guard.remove()
    await guard.remove()
    assert run("nft list ruleset") == ""


async def test_events_are_told(
    netlink: Netlink,
    bridge: Bridge,
    guard: Guard,
    server: DhcpServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.add_lease(MAC, IP, SUBNET)
    caplog.set_level("WARNING")
    told: asyncio.Queue[Event] = asyncio.Queue()
    server.on_event.append(lambda outcome: told.put_nowait(outcome.event))
    tap = await make(netlink, guard, bridge, IP, MAC)
    wire = Wire(tap)
    for kind in (MessageType.DECLINE, MessageType.RELEASE, MessageType.INFORM):
        wire.send(Discover(MAC, kind=kind).frame())
    assert [await told.get() for _ in range(3)] == [
        Event.DECLINED,
        Event.RELEASED,
        Event.NO_ADDRESS,
    ]
    for _ in range(3):
        wire.send(Discover(MAC, kind=MessageType.DECLINE).frame())
        assert await told.get() is Event.DECLINED
    assert caplog.messages == ["DHCP on br0: declined, 52:54:c6:33:64:05 198.51.100.5"]
    tap.close()


def test_holders_of_nothing(tmp_path: Path) -> None:
    assert list(holders("ss-ffffffff")) == []
