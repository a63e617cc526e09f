"""``smallstack hypervisor``: the agent, and what is done to its state from outside."""

import sys
from pathlib import Path
from typing import Any

import click

from smallstack.cli.lazy import LazyGroup
from smallstack.hypervisor.daemon import LOG_LEVEL, SETTINGS
from smallstack.settings import click_options, load, show_config
from smallstack.telemetry.errors import SmallStackError

COMMANDS = {
    "check-store": (
        "smallstack.cli.check_store",
        "hypervisor",
        "read every object and look at every brick: is anything wrong?",
    ),
}


@click.group("hypervisor", cls=LazyGroup, table=COMMANDS, invoke_without_command=True)
@click.option("--config", type=click.Path(path_type=Path), help="settings file (TOML)")
@click.option("--show-config", "show", is_flag=True, help="print every setting and its origin")
@click.option("--pid-file", type=click.Path(path_type=Path), help="write the process id here")
@click_options(SETTINGS)
@click.pass_context
def hypervisor(
    ctx: click.Context, /, config: Path | None, show: bool, pid_file: Path | None, **flags: Any
) -> None:
    """Run VMs on this machine, for callers over RPC; or do what COMMAND says."""
    try:
        values = load(SETTINGS, flags, file=config, section="hypervisor")
    except SmallStackError as error:
        click.echo(f"hypervisor: {error}", err=True)
        sys.exit(2)
    if show:
        click.echo(show_config(values))
        return
    if ctx.invoked_subcommand is not None:
        ctx.obj = values
        return
    from smallstack.daemon.run import Runtime, run
    from smallstack.hypervisor.daemon import serve
    from smallstack.telemetry.log import setup

    try:
        setup(values[LOG_LEVEL])
    except ValueError as error:
        click.echo(f"hypervisor: {error}", err=True)
        sys.exit(2)

    async def main(runtime: Runtime) -> None:
        await serve(values, runtime)

    sys.exit(run(main, pid_file=pid_file))
