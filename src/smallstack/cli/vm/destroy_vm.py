"""``vm-control destroy-vm``: end a VM and delete its disks."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run


@click.command("destroy-vm")
@click.argument("ip_address", metavar="IP", type=IPv4(), nargs=-1, required=True)
@click.pass_obj
def command(target: Target, ip_address: tuple[str, ...]) -> None:
    """End a VM and delete its disks."""

    async def work() -> None:
        async with await connector(target)() as client:
            for ip in ip_address:
                await client.destroy_vm(ip)

    run(work())
