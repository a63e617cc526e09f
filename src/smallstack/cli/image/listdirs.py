"""``imagetool listdirs``: the directories of images."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.output import emit_rows, format_option
from smallstack.control.image_server import list_directories


@click.command("listdirs")
@format_option()
@click.pass_obj
def command(target: ImageTarget, output: str) -> None:
    """List the directories of images and the groups that own them."""
    rows = [
        {"name": directory.name, "owner_group": directory.metadata.owner_group}
        for directory in target.run(list_directories)
    ]
    emit_rows(rows, output, ("name", "owner_group"))
