"""``vm-control connect-to-vm-manager``: QEMU's monitor of a VM on this terminal."""

import sys

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run
from smallstack.cli.vm.connect_to_vm_serial_port import relay


@click.command("connect-to-vm-manager")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.pass_obj
def command(target: Target, ip_address: str) -> None:
    """Type QMP commands, a line each, for a VM's QEMU; Ctrl-] and Enter, or Ctrl-C, ends it."""

    async def work() -> None:
        async with (
            await connector(target)() as client,
            client.connect_manager(ip_address) as connection,
        ):
            if sys.stdin.isatty():
                print(f'connected to {ip_address}: {{"execute": "query-status"}}', file=sys.stderr)
            await relay(connection)

    run(work())
