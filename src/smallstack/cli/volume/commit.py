"""``smallstack volume commit``: put an overlay into the file below it."""

import sys
from pathlib import Path

import click

from smallstack.cli.options import guard
from smallstack.cli.volume.source import FILE


@click.command("commit")
@click.argument("overlay", type=FILE)
def command(overlay: Path) -> None:
    """Put what OVERLAY holds into its backing file. OVERLAY itself stays, and reads the same."""

    def work() -> None:
        from smallstack.volumes.qcow2.commit import commit

        print(f"{commit(overlay)} bytes committed", file=sys.stderr)

    guard(work)
