"""``vm-control start-vm``: start a stopped VM."""

import sys

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Duration, Target, run
from smallstack.cli.transcript import Transcript
from smallstack.control.create import After, wait_after, wait_dhcp


@click.command("start-vm")
@click.argument("ip_address", metavar="IP")
@click.option(
    "--dhcp-timeout",
    type=Duration(),
    default="1m",
    show_default=True,
    help="0: do not wait for the guest's DHCP",
)
@click.option(
    "--probe-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="then wait until this TCP port opens",
)
@click.option("--probe-timeout", type=Duration(), default="5m", show_default=True)
@click.option("--trace-metadata", is_flag=True, help="show what the guest asks for")
@click.pass_obj
def command(
    target: Target,
    ip_address: str,
    dhcp_timeout: int,
    probe_port: int,
    probe_timeout: int,
    trace_metadata: bool,
) -> None:
    """Start a stopped VM."""
    transcript = Transcript(sys.stderr)
    after = After(probe_port, probe_timeout, trace_metadata)

    async def work() -> None:
        connect = connector(target)
        async with await connect() as client, transcript.running():
            asked = await client.start_vm(ip_address, dhcp_timeout=dhcp_timeout)
            wait_dhcp(ip_address, dhcp_timeout, not asked, transcript.line)
            await wait_after(connect, ip_address, after, transcript.line, client)

    run(work())
