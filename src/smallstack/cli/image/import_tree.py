"""``imagetool import-fs-tree``: an image of a tree that a web server has by digest."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration
from smallstack.client.imageserver import ImageServerClient
from smallstack.proto.imageserver import ImportTreeResponse
from smallstack.proto.kinds import Time
from smallstack.srpc.client import Client


@click.command("import-fs-tree")
@click.argument("directory")
@click.argument("url")
@click.option("--expires-in", type=Duration(), help="how long the image lives from now")
@click.pass_obj
def command(target: ImageTarget, directory: str, url: str, expires_in: int | None) -> None:
    """Have the image server make an image in DIRECTORY of the tree at URL, and print its name.

    URL ends with tree/ and the SHA-512 of the tree's root. The server fetches what it lacks; the
    image has no filter and is named by that digest.
    """

    async def work(client: Client) -> ImportTreeResponse:
        until = Time()
        if expires_in is not None:
            until = Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + expires_in)
        return await ImageServerClient(client).import_tree(directory, url, until)

    print(target.run(work).image_name)
