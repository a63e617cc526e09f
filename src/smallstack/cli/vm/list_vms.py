"""``vm-control list-vms``: the addresses of all VMs."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Target, run
from smallstack.cli.output import emit_rows, format_option
from smallstack.proto.hypervisor import ListVMsRequest


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
    request = make_list_request(users, groups, tags)

    async def work() -> list[str]:
        async with await connector(target)() as client:
            return await client.list_vms(request)

    addresses = run(work())
    if output == "table":
        for address in addresses:
            print(address)
    else:
        emit_rows([{"ip_address": a} for a in addresses], output, ("ip_address",))


def make_list_request(
    users: tuple[str, ...], groups: tuple[str, ...], tags: tuple[str, ...]
) -> ListVMsRequest:
    """The filter that the options describe, sorted by address."""
    match: dict[str, list[str]] = {}
    for tag in tags:
        key, separator, value = tag.partition("=")
        if not (key and separator):
            raise click.BadParameter(f"{tag!r} is no tag: write KEY=VALUE")
        match.setdefault(key, []).append(value)
    return ListVMsRequest(
        owner_groups=list(groups), owner_users=list(users), sort=True, vm_tags_to_match=match
    )
