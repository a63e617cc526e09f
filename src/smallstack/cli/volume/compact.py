"""``smallstack volume compact``: leave out what an image does not need."""

import sys
from pathlib import Path

import click

from smallstack.cli.options import guard
from smallstack.cli.volume.source import FILE


@click.command("compact")
@click.argument("image", type=FILE)
@click.option("-o", "--output", type=FILE, help="write to this file [default: in place of IMAGE]")
def command(image: Path, output: Path | None) -> None:
    """Write the qcow2 IMAGE anew without clusters that nobody uses and clusters of zeros.

    Snapshots, bitmaps and the backing file stay what they are.
    """

    def work() -> None:
        from smallstack.volumes.qcow2.rewrite import compact

        before, after = compact(image, output)
        print(f"{before} bytes became {after}", file=sys.stderr)

    guard(work)
