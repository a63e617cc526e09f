"""``hyper-control remove-…``: addresses and subnets that are to be had no more."""

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import IPv4, Target
from smallstack.proto.hypervisor.network import ChangeAddressPoolRequest, UpdateSubnetsRequest
from smallstack.proto.vm import Address


@click.command("remove-ip-address")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.pass_obj
def ip(target: Target, ip_address: str) -> None:
    """Take a free address out of the pool."""
    _change(target, ChangeAddressPoolRequest(addresses_to_remove=[Address(ip_address=ip_address)]))


@click.command("remove-mac-address")
@click.argument("mac_address", metavar="MAC")
@click.pass_obj
def mac(target: Target, mac_address: str) -> None:
    """Take the free address with this MAC out of the pool."""
    removed = [Address(mac_address=mac_address)]
    _change(target, ChangeAddressPoolRequest(addresses_to_remove=removed))


@click.command("remove-excess-addresses")
@click.argument("most", metavar="COUNT", type=click.IntRange(0))
@click.argument("subnet_id", metavar="[SUBNET]", default="")
@click.pass_obj
def excess(target: Target, most: int, subnet_id: str) -> None:
    """Leave so many free addresses, at most, in a subnet or in each of them."""
    _change(target, ChangeAddressPoolRequest(maximum_free_addresses={subnet_id: most}))


@click.command("remove-subnet")
@click.argument("subnet_id", metavar="ID")
@click.pass_obj
def subnet(target: Target, subnet_id: str) -> None:
    """Forget a subnet in which there are neither VMs nor addresses any more."""
    request = UpdateSubnetsRequest(delete=[subnet_id])
    ask(target, lambda client: client.update_subnets(request))


def _change(target: Target, request: ChangeAddressPoolRequest) -> None:
    ask(target, lambda client: client.change_address_pool(request))
