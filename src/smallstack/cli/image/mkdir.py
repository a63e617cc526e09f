"""``imagetool mkdir``: make a directory for images."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.client.imageserver import ImageServerClient


@click.command("mkdir")
@click.argument("name")
@click.option("-p", "--parents", is_flag=True, help="make those above it too")
@click.pass_obj
def command(target: ImageTarget, name: str, parents: bool) -> None:
    """Make the directory NAME."""
    target.run(lambda client: ImageServerClient(client).make_directory(name, parents))
