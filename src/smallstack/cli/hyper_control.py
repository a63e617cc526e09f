"""``hyper-control``: look after a Hypervisor: its subnets, its addresses, its capacity."""

from pathlib import Path

import click

from smallstack.cli.lazy import LazyGroup
from smallstack.cli.options import make_target, target_options

COMMANDS = {
    "add-subnet": ("smallstack.cli.hyper.add_subnet", "command", "tell of a subnet"),
    "add-address": ("smallstack.cli.hyper.add_address", "command", "give addresses to hand out"),
    "get-capacity": (
        "smallstack.cli.hyper.get_capacity",
        "command",
        "what the machine has and what is free",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS)
@click.version_option(version="0.1.0", prog_name="hyper-control")
@target_options
@click.pass_context
def group(ctx: click.Context, address: str, cert_directory: Path, plain: bool) -> None:
    """Look after a Hypervisor: its subnets, its addresses, its capacity."""
    ctx.obj = make_target(address, cert_directory, plain)


def main() -> None:
    """The program."""
    group(prog_name="hyper-control")


if __name__ == "__main__":
    main()
