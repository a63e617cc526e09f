"""DHCP leases of machines that are no VMs: a set that is replaced as a whole."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.hypervisor.errors import ExternalLeaseError
from smallstack.hypervisor.external_leases import AT_ONCE, MAX_LEASES, ExternalLeases
from smallstack.hypervisor.wiring import Wiring
from smallstack.network.dhcp.server import DhcpServer
from smallstack.network.subnets import parse_ip
from smallstack.proto.vm import Address
from tests.hypervisor.test_ledger import make_book


@pytest.fixture
async def dhcp() -> AsyncIterator[DhcpServer]:
    made = DhcpServer()
    yield made
    await made.close()


@pytest.fixture
async def leases(tmp_path: Path, dhcp: DhcpServer) -> ExternalLeases:
    wiring = cast("Wiring", SimpleNamespace(dhcp=dhcp))
    return ExternalLeases(await make_book(tmp_path), wiring)


def address(number: int) -> Address:
    return Address(ip_address=f"198.51.101.{number}", mac_address=f"52:54:00:00:00:{number:02x}")


def held(dhcp: DhcpServer) -> dict[str, str]:
    return {str(lease.ip): lease.hostname for lease in dhcp.leases}


async def test_the_set_is_replaced(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    await leases.replace([address(100), address(101)], ["printer"])
    assert held(dhcp) == {"198.51.101.100": "printer", "198.51.101.101": "198.51.101.101"}
    waiting = dhcp.acknowledged("198.51.101.101")
    await leases.replace([address(101), address(102)])
    assert set(held(dhcp)) == {"198.51.101.101", "198.51.101.102"}
    assert not waiting.done(), "what stays is not touched"
    await leases.replace([address(101), address(102)], ["", "other"])
    assert held(dhcp)["198.51.101.102"] == "other"
    await leases.replace([])
    assert held(dhcp) == {}


async def test_none_or_all(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    await leases.replace([address(100)])
    before = held(dhcp)
    for bad, text in (
        ([address(101), address(101)], "comes twice"),
        ([address(101), Address(ip_address="10.0.0.1", mac_address="52:54:00:00:00:01")], "no sub"),
        ([Address(ip_address="nonsense", mac_address="52:54:00:00:00:01")], "cannot lease"),
        ([address(2)] * (MAX_LEASES + 1), f"at most {MAX_LEASES} are taken"),
    ):
        with pytest.raises(ExternalLeaseError) as raised:
            await leases.replace(bad)
        assert text in str(raised.value)
        assert held(dhcp) == before


async def test_many_at_once(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    many = [
        Address(ip_address=f"198.51.101.{n}", mac_address=f"52:54:00:00:01:{n:02x}")
        for n in range(10, 10 + AT_ONCE + 20)
    ]
    await leases.replace(many)
    assert len(dhcp.leases) == len(many)


async def test_they_go_with_their_stream_alone(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    former = await leases.replace([address(100)])
    latter = await leases.replace([address(101)])
    await leases.forget(former)
    assert set(held(dhcp)) == {"198.51.101.101"}
    await leases.forget(latter)
    assert held(dhcp) == {}


async def test_a_vms_lease_is_not_taken_away(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    """One that got the address after the leases were registered."""
    await leases.replace([address(100)])
    subnet = leases._book.subnets.get("b")
    assert subnet is not None
    dhcp.add_lease("52:54:aa:00:00:01", "198.51.101.100", subnet, "vm")
    await leases.replace([])
    assert held(dhcp) == {"198.51.101.100": "vm"}


async def test_a_new_name_disturbs_nobody(leases: ExternalLeases, dhcp: DhcpServer) -> None:
    await leases.replace([address(100)])
    waiting = dhcp.acknowledged("198.51.101.100")
    dhcp.rename("198.51.101.100", "other")
    dhcp.rename("198.51.101.200", "unknown")
    assert held(dhcp) == {"198.51.101.100": "other"}
    assert not waiting.done()
    found = dhcp.leases.get(parse_ip("198.51.101.100"))
    assert found is not None
    assert found.mac == bytes.fromhex("525400000064")
