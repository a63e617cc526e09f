"""``imagetool listunrefobj`` and ``delunrefobj``: objects that no image needs."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Bytes
from smallstack.cli.output import emit_rows, format_option
from smallstack.client.imageserver import ImageServerClient


@click.command("listunrefobj")
@format_option()
@click.pass_obj
def list_command(target: ImageTarget, output: str) -> None:
    """List the objects on the server that no image needs: digest and size."""
    found = target.run(lambda client: ImageServerClient(client).list_unreferenced_objects())
    rows = [{"hash": str(one.hash), "size": one.size} for one in found]
    emit_rows(rows, output, ("hash", "size"))


@click.command("delunrefobj")
@click.argument("percentage", type=click.IntRange(0, 100))
@click.argument("size", type=Bytes(), default="0", metavar="[BYTES]")
@click.pass_obj
def delete_command(target: ImageTarget, percentage: int, size: int) -> None:
    """Delete objects that no image needs, until PERCENTAGE of them and BYTES bytes are gone."""
    target.run(
        lambda client: ImageServerClient(client).delete_unreferenced_objects(percentage, size)
    )
