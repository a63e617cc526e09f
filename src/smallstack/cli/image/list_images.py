"""``imagetool list``: the names of all images."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.output import emit_rows, format_option
from smallstack.cli.tags import parse_tags
from smallstack.control.image_server import list_images


@click.command("list")
@click.argument("directory", default="")
@click.option("--ignore-expiring", is_flag=True, help="leave out images that expire")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="only with it; repeatable")
@format_option()
@click.pass_obj
def command(
    target: ImageTarget, directory: str, ignore_expiring: bool, tags: tuple[str, ...], output: str
) -> None:
    """List the names of images, one a line; with DIRECTORY those below it (DIRECTORY/: in it)."""
    wanted = parse_tags(tags)
    names = target.run(
        lambda client: list_images(client, directory, ignore_expiring=ignore_expiring, tags=wanted)
    )
    if output == "table":
        for name in names:
            print(name)
    else:
        emit_rows([{"name": name} for name in names], output, ("name",))
