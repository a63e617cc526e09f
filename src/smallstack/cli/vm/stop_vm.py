"""``vm-control stop-vm``: stop a running VM; it keeps its disks and its address."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run


@click.command("stop-vm")
@click.argument("ip_address", metavar="IP", type=IPv4(), nargs=-1, required=True)
@click.pass_obj
def command(target: Target, ip_address: tuple[str, ...]) -> None:
    """Stop a running VM; it keeps its disks and its address."""

    async def work() -> None:
        async with await connector(target)() as client:
            for ip in ip_address:
                await client.stop_vm(ip)

    run(work())
