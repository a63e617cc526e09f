"""``imagetool get``: lay an image out as a directory."""

import sys
from pathlib import Path

import click

from smallstack.cli.image.progress import ProgressLine
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import run
from smallstack.control.images import get_image


@click.command("get")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def command(target: ImageTarget, name: str, directory: Path) -> None:
    """Lay the image NAME out as DIRECTORY, which must not exist or be empty."""
    line = ProgressLine("fetching")

    async def work() -> list[str]:
        with line as progress:
            return await get_image(target.server(), name, directory, progress)

    for warning in run(work()):
        print(f"imagetool: warning: {warning}", file=sys.stderr)
