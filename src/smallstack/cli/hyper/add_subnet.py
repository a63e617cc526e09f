"""``hyper-control add-subnet``: tell a Hypervisor of a subnet its VMs can be in."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run
from smallstack.proto.hypervisor.network import UpdateSubnetsRequest
from smallstack.proto.vm import Subnet


@click.command("add-subnet")
@click.argument("subnet_id", metavar="ID")
@click.argument("gateway", type=IPv4())
@click.argument("mask", type=IPv4())
@click.argument("dns", nargs=-1, type=IPv4())
@click.option("--domain-name", default="", help="what guests append to bare names")
@click.option("--vlan-id", type=click.IntRange(0, 4094), default=0, show_default=True)
@click.option("--allowed-user", "users", multiple=True, help="repeatable; none: everybody")
@click.option("--allowed-group", "groups", multiple=True, help="repeatable")
@click.pass_obj
def command(
    target: Target,
    subnet_id: str,
    gateway: str,
    mask: str,
    dns: tuple[str, ...],
    domain_name: str,
    vlan_id: int,
    users: tuple[str, ...],
    groups: tuple[str, ...],
) -> None:
    """Add subnet ID with its GATEWAY, MASK (as an address) and DNS servers."""
    subnet = Subnet(
        id=subnet_id,
        ip_gateway=gateway,
        ip_mask=mask,
        domain_name=domain_name,
        domain_name_servers=list(dns),
        vlan_id=vlan_id,
        allowed_users=list(users),
        allowed_groups=list(groups),
    )

    async def work() -> None:
        async with await connector(target)() as client:
            await client.update_subnets(UpdateSubnetsRequest(add=[subnet]))

    run(work())
