"""What follows a VM's boot: its options, and the one command behind start-vm and reboot-vm."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Duration, IPv4, Target, run
from smallstack.cli.transcript import Transcript
from smallstack.client.hypervisor import HypervisorClient
from smallstack.control.create import After, wait_after, wait_dhcp

F = TypeVar("F", bound=Callable[..., Any])


class Boot(Protocol):
    """A request that boots a VM; whether the guest asked for its address in time."""

    def __call__(
        self, client: HypervisorClient, ip_address: str, /, *, dhcp_timeout: int
    ) -> Awaitable[bool]:
        """``dhcp_timeout`` in ns, 0 for no wait."""


def boot_options(command: F) -> F:
    """How long to wait for what, once the guest runs."""
    for option in (
        click.option("--trace-metadata", is_flag=True, help="show what the guest asks for"),
        click.option("--probe-timeout", type=Duration(), default="5m", show_default=True),
        click.option(
            "--probe-port",
            type=click.IntRange(0, 65535),
            default=0,
            help="then wait until this TCP port opens",
        ),
        click.option(
            "--dhcp-timeout",
            type=Duration(),
            default="1m",
            show_default=True,
            help="0: do not wait for the guest's DHCP",
        ),
    ):
        command = option(command)
    return command


def boot_command(name: str, text: str, boot: Boot) -> click.Command:
    """A command that boots one VM by ``boot`` and waits as its options say."""

    @click.command(name, help=text)
    @click.argument("ip_address", metavar="IP", type=IPv4())
    @boot_options
    @click.pass_obj
    def command(
        target: Target,
        ip_address: str,
        dhcp_timeout: int,
        probe_port: int,
        probe_timeout: int,
        trace_metadata: bool,
    ) -> None:
        transcript = Transcript(sys.stderr)
        after = After(probe_port, probe_timeout, trace_metadata)

        async def work() -> None:
            connect = connector(target)
            async with await connect() as client, transcript.running():
                asked = await boot(client, ip_address, dhcp_timeout=dhcp_timeout)
                wait_dhcp(ip_address, dhcp_timeout, not asked, transcript.line)
                await wait_after(connect, ip_address, after, transcript.line, client)

        run(work())

    return command
