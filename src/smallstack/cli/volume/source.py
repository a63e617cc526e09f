"""What the commands on volumes share: which disk is meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)


def disk_options(command: F) -> F:
    """Options that say what the disk is: format, snapshot, whether there may be others below."""
    for option in (
        click.option(
            "--no-backing",
            is_flag=True,
            help="refuse an image that names a backing file: for files of unknown origin",
        ),
        click.option("--snapshot", help="as it was at this snapshot (id or name)"),
        click.option(
            "--disk-format",
            type=click.Choice(["raw", "qcow2"]),
            help="what it is [default: qcow2 if it begins so, else raw]",
        ),
    ):
        command = option(command)
    return command
