"""The metadata service as guests see it: over a bridge, through the guard, in its own namespace."""

import asyncio
import base64
import contextlib
import http.client
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from smallstack.network.bridge import Bridge
from smallstack.network.guard import Guard
from smallstack.network.metadata.server import CONNECTIONS_PER_ADDRESS, MetadataServer
from smallstack.network.names import service_name
from smallstack.network.netlink import Netlink
from smallstack.proto.vm import Address, VmInfo
from smallstack.telemetry.errors import SmallStackError
from tests.network.world import SUBNET, Guest, settled

pytestmark = [pytest.mark.root]
Plug = Callable[..., Guest]
METADATA = "169.254.169.254"
CONTROL_PORT = 6976


@dataclass
class View:
    info: VmInfo
    user_data: Path | None = None
    credentials: Path | None = None


async def signed(data: bytes) -> bytes:
    return b"signature of " + data[:9] + bytes(200)


@pytest.fixture
async def service(netlink: Netlink, bridge: Bridge, guard: Guard) -> AsyncIterator[MetadataServer]:
    made = MetadataServer(bridge, VMS.get, sign=signed)
    await made.start(netlink, CONTROL_PORT)
    await made.set_subnets([SUBNET])
    await guard.install(services=[service_name(bridge.name)])
    yield made
    VMS.clear()
    await made.close()


VMS: dict[str, View] = {}


async def add(service: MetadataServer, guard: Guard, guest: Guest, user_data: Path | None) -> None:
    address = Address(ip_address=guest.ip, mac_address=guest.mac)
    VMS[guest.ip] = View(VmInfo(address=address, hostname="it"), user_data)
    await guard.allow(guest.port, guest.mac, guest.ip, service.mac)
    await service.add_guest(guest.ip, guest.mac)
    guest.set_address()


def get(path: str, method: str = "GET", timeout: float = 10) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(METADATA, timeout=timeout)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def silent(port: int = 80) -> bool:
    """Whether a connection gets no answer at all, not even a refusal."""
    with socket.socket() as made:
        made.settimeout(0.4)
        try:
            made.connect((METADATA, port))
        except TimeoutError:
            return True
        return False


async def test_appendix_1(
    service: MetadataServer, guard: Guard, plug: Plug, tmp_path: Path
) -> None:
    data = tmp_path / "user-data"
    data.write_bytes(bytes(range(256)) * 4096)  # 1 MiB
    guest = plug("198.51.100.5")
    await add(service, guard, guest, data)

    async def fetch(path: str, method: str = "GET") -> tuple[int, bytes]:
        return await guest.run(lambda: get(path, method))

    assert await fetch("/datasource/SmallStack") == (200, b"true\n")
    assert await fetch("/latest/is-externally-patchable") == (200, b"true\n")
    status, clock = await fetch("/latest/dynamic/epoch-time")
    seconds, nanoseconds = clock.decode().removesuffix("\n").split(".")
    assert status == 200
    assert len(nanoseconds) == 9
    assert abs(int(seconds) - time.time()) < 60
    status, document = await fetch("/latest/dynamic/instance-identity/document")
    assert status == 200
    assert document.startswith(b'{\n    "Address": {\n        "IpAddress": "198.51.100.5",\n')
    assert document.endswith(b"}\n")
    assert await fetch("/latest/user-data") == (200, data.read_bytes())
    assert await fetch("/nocloud/user-data") == (200, data.read_bytes())
    assert await fetch("/") == (200, b"datasource\nlatest\nnocloud\n")
    assert await fetch("/latest/") == (200, b"dynamic\nis-externally-patchable\nuser-data\n")
    assert await fetch("/latest/user-data?x=1", "POST") == (200, data.read_bytes())
    assert await fetch("/datasource/SmallStack", "HEAD") == (200, b"")
    assert await fetch("/nothing") == (404, b"")
    VMS[guest.ip].user_data = tmp_path / "absent"
    assert await fetch("/latest/user-data") == (404, b"")
    assert await fetch("/nocloud/user-data") == (200, b"")
    VMS.clear()
    assert await fetch("/datasource/SmallStack") == (404, b"")
    assert service.counters == {"200": 11, "404": 3}


def ask(
    path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(METADATA, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


async def test_tokens(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    """As EC2's clients ask for them; the answer goes no further than to the guest itself."""
    guest, other = plug("198.51.100.5"), plug("198.51.100.6")
    await add(service, guard, guest, None)
    await add(service, guard, other, None)
    path = "/latest/api/token"
    with guest.packet_socket() as wire:
        wire.settimeout(10)
        status, token, headers = await guest.run(
            lambda: ask(path, "PUT", X_aws_ec2_metadata_token_ttl_seconds="600")
        )
        assert (status, len(token)) == (200, 56)
        assert headers["X-Aws-Ec2-Metadata-Token-Ttl-Seconds"] == "600"
        while token not in (frame := await asyncio.to_thread(wire.recv, 2048)):
            pass
        assert frame[14 + 8] == 1  # the time to live of IPv4 behind the Ethernet header
    shown = {"X_aws_ec2_metadata_token": token.decode()}
    for caller, expected in ((guest, 200), (other, 401)):
        status, _, _ = await caller.run(lambda: ask("/datasource/SmallStack", **shown))
        assert status == expected
    status, body, headers = await guest.run(lambda: ask(path))
    assert (status, body, headers["Allow"]) == (405, b"", "PUT")
    for wrong, expected in (
        ({}, 400),
        ({"X_aws_ec2_metadata_token_ttl_seconds": "99999"}, 400),
        ({"X_aws_ec2_metadata_token_ttl_seconds": "60", "X_Forwarded_For": "10.0.0.1"}, 403),
    ):
        status, body, _ = await guest.run(lambda wrong=wrong: ask(path, "PUT", **wrong))  # type: ignore[misc]
        assert (status, body) == (expected, b"")


async def test_credentials_are_their_vms(
    service: MetadataServer, guard: Guard, plug: Plug, tmp_path: Path
) -> None:
    guest, other = plug("198.51.100.5"), plug("198.51.100.6")
    await add(service, guard, guest, None)
    await add(service, guard, other, None)
    VMS[guest.ip].credentials, VMS[other.ip].credentials = tmp_path / "a", tmp_path / "b"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "identity.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    path = "/latest/dynamic/instance-identity/"
    status, key, headers = await guest.run(lambda: ask(f"{path}RSA-X.509-key"))
    assert (status, key) == (200, b"-----BEGIN PRIVATE KEY-----\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert (await guest.run(lambda: ask(f"{path}X.509-certificate")))[0] == 404
    assert (await other.run(lambda: ask(f"{path}RSA-X.509-key")))[0] == 404
    assert (await other.run(lambda: ask(f"{path}../a/identity.key")))[0] == 404
    status, signature, _ = await guest.run(lambda: ask(f"{path}signature"))
    assert (status, max(map(len, signature.split(b"\n")))) == (200, 76)
    assert base64.b64decode(signature) == await signed(b'{\n    "Ad')


async def test_a_key_that_fails_is_told(
    netlink: Netlink, bridge: Bridge, guard: Guard, plug: Plug, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: bytes) -> bytes:
        raise SmallStackError(detail="the key is gone")

    guest = plug("198.51.100.5")
    path = "/latest/dynamic/instance-identity/signature"
    for sign, expected in ((broken, 500), (None, 404)):
        service = MetadataServer(bridge, VMS.get, sign=sign)
        await service.start(netlink, None)
        try:
            await service.set_subnets([SUBNET])
            await guard.install(services=[service_name(bridge.name)])
            await add(service, guard, guest, None)
            assert (await guest.run(lambda: ask(path)))[:2] == (expected, b"")
        finally:
            VMS.clear()
            await service.close()
    assert "metadata: cannot sign: the key is gone" in caplog.text


async def test_without_a_gateway(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    """A guest that knows 169.254.169.254 to be on its link asks for it by ARP."""
    guest = plug("198.51.100.5")
    await add(service, guard, guest, None)
    code, said = await guest.program("ip", "route", "del", "default")
    assert code == 0, said
    await on_link(guest)
    assert await guest.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")


async def test_control_port(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    """The socket handed back is on the same address, and sees the guest's own."""
    guest = plug("198.51.100.5")
    await add(service, guard, guest, None)
    loop = asyncio.get_running_loop()

    def call() -> bytes:
        with socket.create_connection((METADATA, CONTROL_PORT), timeout=10) as made:
            return made.recv(100)

    calling = asyncio.create_task(guest.run(call))
    assert service.control_socket is not None
    connection, peer = await loop.sock_accept(service.control_socket)
    with connection:
        assert peer[0] == guest.ip
        await loop.sock_sendall(connection, b"welcome")
    assert await calling == b"welcome"


async def test_without_a_control_port(
    netlink: Netlink, bridge: Bridge, guard: Guard, plug: Plug
) -> None:
    service = MetadataServer(bridge, VMS.get)
    await service.start(netlink, None)
    try:
        await service.set_subnets([SUBNET])
        await guard.install(services=[service_name(bridge.name)])
        guest = plug("198.51.100.5")
        await add(service, guard, guest, None)
        assert service.control_socket is None

        def call() -> None:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((METADATA, CONTROL_PORT), timeout=10)

        await guest.run(call)
    finally:
        VMS.clear()
        await service.close()


async def test_disabled_metadata(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    """No element in the guard's map, no route: the guest hears nothing."""
    guest = plug("198.51.100.5")
    await guard.allow(guest.port, guest.mac, guest.ip)
    guest.set_address()
    await service.set_subnets([msgspec.structs.replace(SUBNET, disable_metadata=True)])
    assert await guest.run(silent)


@pytest.mark.parametrize("what", ["ip", "mac", "both", "port"])
async def test_nobody_passes_for_another(
    service: MetadataServer, guard: Guard, plug: Plug, what: str, tmp_path: Path
) -> None:
    """Another's IP, another's MAC, both, or the right ones behind the wrong tap: no answer."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"password")
    victim, thief = plug("198.51.100.5"), plug("198.51.100.6")
    await add(service, guard, victim, secret)
    await add(service, guard, thief, None)
    assert await thief.run(lambda: get("/latest/user-data")) == (404, b"")
    if what in {"mac", "both"}:
        thief.set_mac(victim.mac)
    if what in {"ip", "both"}:
        thief.set_address(victim.ip)
    if what == "port":
        await guard.revoke(thief.port)
    assert await thief.run(silent)
    assert await thief.run(lambda: silent(CONTROL_PORT))
    await on_link(thief)
    assert await thief.run(silent)
    assert await thief.run(lambda: silent(CONTROL_PORT))


async def on_link(guest: Guest) -> None:
    """Send to the service's own MAC, found by ARP, instead of the gateway's."""
    code, said = await guest.program("ip", "route", "add", METADATA, "dev", "eth0")
    assert code == 0, said


async def test_without_the_guard_theft_would_work(
    service: MetadataServer, guard: Guard, plug: Plug, tmp_path: Path
) -> None:
    """The counter-proof: the same thief, and no rules."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"password")
    victim, thief = plug("198.51.100.5"), plug("198.51.100.6")
    await add(service, guard, victim, secret)
    await guard.remove()
    thief.set_mac(victim.mac)
    thief.set_address(victim.ip)
    await on_link(thief)
    assert await thief.run(lambda: get("/latest/user-data")) == (200, b"password")


async def test_answers_cannot_be_drawn_away(
    service: MetadataServer, guard: Guard, plug: Plug, bridge: Bridge
) -> None:
    """A guest that sends from the service's MAC, or from another guest's, gets none of their
    frames: the first is nailed to its port, answers only leave by the right tap."""
    victim, thief = plug("198.51.100.5"), plug("198.51.100.6")
    await add(service, guard, victim, None)
    await add(service, guard, thief, None)
    with thief.packet_socket() as wire:
        wire.settimeout(0.5)
        for mac in (service.mac, victim.mac):
            source = bytes.fromhex(mac.replace(":", ""))
            wire.send(b"\xff" * 6 + source + b"\x08\x06" + bytes(28))
            if mac == service.mac:
                assert await victim.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")
        # Now the bridge believes the victim to be behind the thief's tap.
        assert await victim.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")
        with pytest.raises(TimeoutError):
            while True:
                frame = await asyncio.to_thread(wire.recv, 2048)
                assert frame[26:30] != bytes([169, 254, 169, 254]), frame


async def test_metadata_stays_in_the_machine(
    service: MetadataServer, guard: Guard, plug: Plug, bridge: Bridge
) -> None:
    """A machine behind the uplink is not answered, not even by ARP, and sees nothing of it."""
    guest, outside = plug("198.51.100.5"), plug("198.51.100.77", port="uplink")
    await add(service, guard, guest, None)
    VMS[outside.ip] = VMS[guest.ip]
    outside.set_address()
    await guard.set_uplinks(["uplink"])
    with outside.packet_socket() as wire:
        assert await outside.run(silent)
        await on_link(outside)
        assert await outside.run(silent)
        assert await guest.run(lambda: get("/datasource/SmallStack")) == (200, b"true\n")
        wire.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                frame, address = wire.recvfrom(2048)
                if address[2] != 4:  # PACKET_OUTGOING: what it sent itself
                    assert b"\xa9\xfe\xa9\xfe" not in frame, frame


async def test_hostile_clients(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    guest = plug("198.51.100.5")
    await add(service, guard, guest, None)

    def send(data: bytes) -> bytes:
        with socket.create_connection((METADATA, 80), timeout=10) as made:
            made.sendall(data)
            made.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := made.recv(4096):
                got += chunk
            return got

    for data, status in (
        (b"A" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"400"),
    ):
        assert (await guest.run(lambda data=data: send(data)))[9:12] == status  # type: ignore[misc]
    assert await guest.run(lambda: send(b"GET / HTT")) == b""
    both = b"GET /datasource/SmallStack HTTP/1.1\r\n\r\n" * 2
    assert (await guest.run(lambda: send(both))).count(b"true\n") == 2
    posted = b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    assert (await guest.run(lambda: send(posted))).startswith(b"HTTP/1.1 200 OK\r\n")

    def hold() -> int:
        """How many connections are answered while all are kept open."""
        with contextlib.ExitStack() as held:
            for count in range(CONNECTIONS_PER_ADDRESS + 2):
                made = held.enter_context(socket.create_connection((METADATA, 80), timeout=10))
                try:
                    made.sendall(b"GET /datasource/SmallStack HTTP/1.1\r\n\r\n")
                    answered = made.recv(4096)
                except (ConnectionResetError, BrokenPipeError):
                    return count
                if not answered:
                    return count
        return -1

    # Connections from above may still be on their way out.
    assert CONNECTIONS_PER_ADDRESS - 9 <= await guest.run(hold) <= CONNECTIONS_PER_ADDRESS
    assert service.counters["turned away"] == 1


async def test_tracers(service: MetadataServer, guard: Guard, plug: Plug) -> None:
    guest = plug("198.51.100.5")
    await add(service, guard, guest, None)
    with service.tracers.open(guest.ip) as tracer, service.tracers.open("198.51.100.6") as other:
        await guest.run(lambda: get("/latest/user-data"))
        await guest.run(lambda: get("/what/ever"))
        tracer.close()
        assert [path async for path in tracer] == ["/latest/user-data", "/what/ever"]
        other.close()
        assert [path async for path in other] == []


async def test_nothing_left(
    nothing_left: None, netlink: Netlink, bridge: Bridge, guard: Guard
) -> None:
    before = socket.if_nameindex()
    for _ in range(3):
        service = MetadataServer(bridge, VMS.get)
        await service.start(netlink, CONTROL_PORT)
        await service.set_subnets([SUBNET])
        assert service_name(bridge.name) in {name for _, name in socket.if_nameindex()}
        await service.close()
        assert settled(lambda: socket.if_nameindex() == before)


async def test_a_leftover_cable_is_replaced(netlink: Netlink, bridge: Bridge, guard: Guard) -> None:
    first, second = MetadataServer(bridge, VMS.get), MetadataServer(bridge, VMS.get)
    await first.start(netlink, CONTROL_PORT)
    await second.start(netlink, CONTROL_PORT)
    await first.close()
    assert service_name(bridge.name) in {name for _, name in socket.if_nameindex()}
    await second.close()
