"""``smallstack imageserver``: the daemon that serves images and their objects."""

import sys
from pathlib import Path

import click

from smallstack.cli.lazy import LazyGroup
from smallstack.imageserver.daemon import SETTINGS, serve
from smallstack.settings import click_options, load, show_config
from smallstack.telemetry.errors import SmallStackError

COMMANDS = {
    "check-store": (
        "smallstack.cli.check_store",
        "imageserver",
        "read every object: is anything wrong?",
    ),
}


@click.group("imageserver", cls=LazyGroup, table=COMMANDS, invoke_without_command=True)
@click_options(SETTINGS)
@click.option("--config", type=click.Path(path_type=Path), help="settings file (TOML)")
@click.option("--show-config", "show", is_flag=True, help="print the settings and end")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning, error")
@click.option("--pid-file", type=click.Path(path_type=Path), help="write the process id here")
@click.pass_context
def imageserver(
    ctx: click.Context,
    /,
    config: Path | None,
    show: bool,
    log_level: str,
    pid_file: Path | None,
    **flags: object,
) -> None:
    """Serve images and their objects; or do what COMMAND says."""
    from smallstack.daemon.run import run
    from smallstack.telemetry import log

    try:
        values = load(SETTINGS, flags, file=config, section="imageserver")
        log.setup(log_level)
    except (SmallStackError, ValueError) as error:
        print(f"imageserver: {error}", file=sys.stderr)
        sys.exit(2)
    if show:
        print(show_config(values))
        return
    if ctx.invoked_subcommand is not None:
        ctx.obj = values
        return
    sys.exit(run(lambda runtime: serve(runtime, values), pid_file=pid_file))
