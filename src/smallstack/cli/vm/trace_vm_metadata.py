"""``vm-control trace-vm-metadata``: the metadata paths a VM asks for, as it does."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run


@click.command("trace-vm-metadata")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.pass_obj
def command(target: Target, ip_address: str) -> None:
    """Print each metadata path the VM asks for, until the VM is destroyed or Ctrl-C."""

    async def work() -> None:
        async with await connector(target)() as client:
            async for path in client.trace_vm_metadata(ip_address):
                print(path, flush=True)

    run(work())
