"""``vm-control list-vms``: the addresses of all VMs."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Target, run
from smallstack.cli.output import emit_rows, format_option
from smallstack.cli.tags import parse_tags


@click.command("list-vms")
@click.option("--owner-user", "users", multiple=True, help="only this owner's; repeatable")
@click.option("--owner-group", "groups", multiple=True, help="only this group's; repeatable")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="only with it; repeatable")
@format_option()
@click.pass_obj
def command(
    target: Target,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    tags: tuple[str, ...],
    output: str,
) -> None:
    """List the addresses of the VMs on the Hypervisor, one a line."""
    match = parse_tags(tags)

    async def work() -> list[str]:
        async with await connector(target)() as client:
            return await client.list_vms(owner_users=users, owner_groups=groups, tags=match)

    addresses = run(work())
    if output == "table":
        for address in addresses:
            print(address)
    else:
        emit_rows([{"ip_address": a} for a in addresses], output, ("ip_address",))
