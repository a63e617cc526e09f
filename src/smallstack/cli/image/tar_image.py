"""``imagetool tar``: an image as a tar archive."""

import sys

import click

from smallstack.cli.image.progress import ProgressLine
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import run
from smallstack.control.archive import COMPRESSIONS, write_archive


@click.command("tar")
@click.argument("name")
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--compress", type=click.Choice(COMPRESSIONS), default="none", show_default=True)
@click.pass_obj
def command(target: ImageTarget, name: str, file: str, compress: str) -> None:
    """Write the image NAME as a tar archive to FILE, or to standard output.

    Owners are numbers; times to the nanosecond, attributes and ACLs are in extended headers:
    `tar --extract --xattrs --xattrs-include='*'`, or `imagetool add`, take them out. Equal images
    give equal archives.
    """
    if file == "-" and sys.stdout.isatty():
        raise click.UsageError("an archive is no text: name a FILE, or redirect standard output")
    line = ProgressLine("writing")

    async def work() -> list[str]:
        with line as progress:
            return await write_archive(target.server(), name, file, compress, progress)

    for warning in run(work()):
        print(f"imagetool: warning: {warning}", file=sys.stderr)
