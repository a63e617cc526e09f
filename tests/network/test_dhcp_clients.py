"""Real DHCP clients get their leases, through the guard, on a bridge in a private namespace."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command
from smallstack.network.bridge import Bridge
from smallstack.network.dhcp.leases import Event
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.guard import Guard
from tests.network.world import SUBNET, Guest, addresses_here, settled

pytestmark = [pytest.mark.root]
IP = "198.51.100.5"
Plug = Callable[..., Guest]


@pytest.fixture
async def server(bridge: Bridge) -> AsyncIterator[DhcpServer]:
    made = DhcpServer()
    made.listen(bridge.name, bridge.addresses)
    yield made
    await made.close()


@pytest.fixture
async def guest(plug: Plug, server: DhcpServer, guard: Guard, bridge: Bridge) -> Guest:
    made = plug(IP)
    await guard.allow(made.port, made.mac, IP)
    server.add_lease(made.mac, IP, SUBNET, hostname="guest5", bridge=bridge.name)
    return made


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


async def test_udhcpc(guest: Guest, server: DhcpServer, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && env >"$0.env"\nexit 0\n')
    script.chmod(0o755)
    acknowledged = server.acknowledged(IP)
    code, said = await guest.program(
        need("udhcpc"), "-i", "eth0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-s", script
    )
    assert code == 0, said
    assert acknowledged.done()
    told = dict(line.split("=", 1) for line in Path(f"{script}.env").read_text().splitlines())
    assert told["ip"] == IP
    assert told["subnet"] == "255.255.255.0"
    assert told["router"] == "198.51.100.1"
    assert told["dns"] == "198.51.100.1 203.0.113.53"
    assert told["domain"] == "example.org"
    assert told["hostname"] == "guest5"
    assert told["lease"] == "172800"
    assert told["serverid"] == "198.51.100.1"
    assert server.counters["offered"] == server.counters["acknowledged"] == 1


async def test_dhclient(guest: Guest, server: DhcpServer, tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    script = tmp_path / "script"
    # The release is unicast from the address, so the script has to set that.
    script.write_text(
        "#!/bin/sh\n"
        '[ "$reason" = BOUND ] && ip addr replace "$new_ip_address/24" dev eth0\n'
        "exit 0\n"
    )
    script.chmod(0o755)
    common = (need("dhclient"), "-4", "-d", "-sf", script, "-lf", leases, "-pf", tmp_path / "pid")
    released = asyncio.get_running_loop().create_future()
    server.on_event.append(
        lambda outcome: released.set_result(None) if outcome.event is Event.RELEASED else None
    )
    server.on_event.append(
        lambda outcome: bound.set() if outcome.event is Event.ACKNOWLEDGED else None
    )
    bound = asyncio.Event()
    running = asyncio.create_task(guest.program(*common, "-1", "eth0"))
    async with asyncio.timeout(60):
        await bound.wait()
        assert await guest.run(lambda: settled(lambda: addresses_here() == [f"{IP}/24"])), (
            await running
        )
        said = await guest.program(*common, "-r", "eth0")
        await released
        await running
    text = leases.read_text()
    assert f"fixed-address {IP};" in text, said
    assert "option routers 198.51.100.1;" in text
    assert 'option host-name "guest5";' in text
    assert "option rfc3442-classless-static-routes 32,169,254,169,254,0,0,0,0,0,198,51,100,1;" in (
        text
    )


PYROUTE2 = """
import asyncio, warnings
from pyroute2.dhcp.client import AsyncDHCPClient, ClientConfig
from pyroute2.dhcp.fsm import State

async def main():
    async with AsyncDHCPClient(ClientConfig(interface="eth0")) as client:
        await client.bootstrap()
        await client.wait_for_state(State.BOUND, timeout=30)
        print(client.lease.ip, client.lease.subnet_mask, client.lease.server_id)

asyncio.run(main())
"""


async def test_pyroute2(guest: Guest, server: DhcpServer, tmp_path: Path) -> None:
    code, said = await guest.program(sys.executable, "-c", PYROUTE2, cwd=tmp_path)
    assert code == 0, said
    assert f"{IP} 255.255.255.0 198.51.100.1" in said
    assert server.counters["acknowledged"] >= 1


async def test_systemd_networkd(guest: Guest, server: DhcpServer, tmp_path: Path) -> None:
    script, log = Path(__file__).with_name("networkd.sh"), tmp_path / "log"
    code, said = await guest.program(*private_mounts_command(["sh", str(script), str(log)]))
    assert code == 0, said + log.read_text()
    assert f"ADDRESS={IP}\n" in said
    assert "CLASSLESS_ROUTES=169.254.169.254/32,0.0.0.0 0.0.0.0/0,198.51.100.1" in said
    assert "\n169.254.169.254 dev eth0 proto dhcp scope link" in said
    assert "\ndefault via 198.51.100.1 dev eth0 proto dhcp" in said
    assert server.counters["offered"] == server.counters["acknowledged"] == 1


async def test_unknown_client_gets_nothing(plug: Plug, server: DhcpServer, guard: Guard) -> None:
    stranger = plug("198.51.100.9")
    await guard.allow(stranger.port, stranger.mac, "198.51.100.9")
    code, _said = await stranger.program(
        need("udhcpc"), "-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"
    )
    assert code != 0
    assert server.counters == {"unknown client": 2}
