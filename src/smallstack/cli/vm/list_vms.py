"""``vm-control list-vms``: the addresses of all VMs."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Target, run
from smallstack.cli.output import emit_rows, format_option


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


def parse_tags(tags: tuple[str, ...]) -> dict[str, list[str]]:
    """The values that each key may have, from ``KEY=VALUE`` words."""
    match: dict[str, list[str]] = {}
    for tag in tags:
        key, separator, value = tag.partition("=")
        if not (key and separator):
            raise click.BadParameter(f"{tag!r} is no tag: write KEY=VALUE")
        match.setdefault(key, []).append(value)
    return match
