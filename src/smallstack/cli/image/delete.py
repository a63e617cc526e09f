"""``imagetool delete``: delete an image for good."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.client.imageserver import ImageServerClient


@click.command("delete")
@click.argument("name")
@click.pass_obj
def command(target: ImageTarget, name: str) -> None:
    """Delete the image NAME. The name can never be used again."""
    target.run(lambda client: ImageServerClient(client).delete_image(name))
