"""``vm-control probe-vm-port``: wait until a TCP port of a VM opens."""

import sys

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Duration, IPv4, Target, run
from smallstack.cli.transcript import Transcript
from smallstack.control.create import After, wait_after


@click.command("probe-vm-port")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--timeout", type=Duration(), default="5m", show_default=True)
@click.pass_obj
def command(target: Target, ip_address: str, port: int, timeout: int) -> None:
    """Wait until the Hypervisor can open the port; exit 1 when it does not in time."""
    transcript = Transcript(sys.stderr)

    async def work() -> None:
        connect = connector(target)
        async with await connect() as client, transcript.running():
            after = After(port, timeout)
            await wait_after(connect, ip_address, after, transcript.line, client)

    run(work())
