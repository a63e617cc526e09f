"""``imagetool chown`` and ``rmdir``: who may add to a directory of images, and its end."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.client.imageserver import ImageServerClient


@click.command("chown")
@click.argument("name")
@click.argument("group")
@click.pass_obj
def chown_command(target: ImageTarget, name: str, group: str) -> None:
    """Give the directory NAME to GROUP, whose members may then add and delete images in it."""
    target.run(lambda client: ImageServerClient(client).chown_directory(name, group))


@click.command("rmdir")
@click.argument("name")
@click.pass_obj
def remove_command(target: ImageTarget, name: str) -> None:
    """Remove the directory NAME, in which no name may have been used."""
    target.run(lambda client: ImageServerClient(client).delete_directory(name))
