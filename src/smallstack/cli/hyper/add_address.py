"""``hyper-control add-address``: give a Hypervisor an address to hand out."""

import ipaddress

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run
from smallstack.proto.hypervisor.network import ChangeAddressPoolRequest
from smallstack.proto.vm import Address


@click.command("add-address")
@click.argument("mac")
@click.argument("ip", required=False, default="")
@click.pass_obj
def command(target: Target, mac: str, ip: str) -> None:
    """Add an address with its MAC; an empty MAC ('') is derived from the IP.

    IP can be a range FIRST-LAST when the MAC is empty.
    """
    addresses = make_addresses(mac, ip)

    async def work() -> None:
        async with await connector(target)() as client:
            await client.change_address_pool(ChangeAddressPoolRequest(addresses_to_add=addresses))

    run(work())


def make_addresses(mac: str, ip: str) -> list[Address]:
    """The addresses that the arguments name."""
    if not (mac or ip):
        raise click.UsageError("an address needs a MAC, an IP or both")
    if mac:
        return [Address(ip_address=IPv4()(ip) if ip else "", mac_address=mac)]
    first, _, last = ip.partition("-")
    low = ipaddress.IPv4Address(IPv4()(first))
    high = ipaddress.IPv4Address(IPv4()(last or first))
    if not int(low) <= int(high) <= int(low) + 65535:
        raise click.BadParameter(f"{ip}: the range runs from low to high, 65536 at most")
    return [derived(ipaddress.IPv4Address(n)) for n in range(int(low), int(high) + 1)]


def derived(ip: ipaddress.IPv4Address) -> Address:
    """The address whose MAC is ``52:54:`` and the four octets of ``ip``, as the ecosystem's."""
    mac = ":".join(f"{octet:02x}" for octet in (0x52, 0x54, *ip.packed))
    return Address(ip_address=str(ip), mac_address=mac)
