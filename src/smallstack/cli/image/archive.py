"""``imagetool get-archive``, ``restore-archive``: an image without its objects, kept elsewhere."""

from pathlib import Path

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration, fail
from smallstack.client.errors import SourceError
from smallstack.client.imageserver import ImageServerClient
from smallstack.durable import replace_file
from smallstack.proto.kinds import Time
from smallstack.srpc.client import Client
from smallstack.telemetry.errors import describe

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("get-archive")
@click.argument("name")
@click.argument("file", type=FILE)
@click.pass_obj
def get_command(target: ImageTarget, name: str, file: Path) -> None:
    """Write what the server knows of the image NAME into FILE; its objects are no part of it.

    The server that wrote it takes it back as it was, also when the image was deleted since.
    """

    async def work(client: Client) -> bytes:
        return await ImageServerClient(client).get_image_archive(name)

    data = target.run(work)
    try:
        replace_file(file, data)
    except OSError as error:
        fail(f"cannot write {file}: {describe(error)}")


@click.command("restore-archive")
@click.argument("file", type=FILE)
@click.option("--expires-in", type=Duration(), help="how long an image that expired lives from now")
@click.pass_obj
def restore_command(target: ImageTarget, file: Path, expires_in: int | None) -> None:
    """Add the image in FILE, of get-archive; its objects have to be on the server still."""

    async def work(client: Client) -> None:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise SourceError(name=file, detail=describe(error, file)) from error
        until = Time()
        if expires_in is not None:
            until = Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + expires_in)
        await ImageServerClient(client).restore_image(data, until)

    target.run(work)
