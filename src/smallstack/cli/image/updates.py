"""``imagetool get-image-updates``: images and directories as they come and go."""

from contextlib import aclosing

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.client.imageserver import ImageServerClient
from smallstack.proto.imageserver import ImageOperation, ImageUpdate
from smallstack.srpc.client import Client

_WORDS = {
    ImageOperation.ADD_IMAGE: "ADD",
    ImageOperation.DELETE_IMAGE: "DELETE",
    ImageOperation.MAKE_DIRECTORY: "MKDIR",
    ImageOperation.DELETE_DIRECTORY: "DELETE DIRECTORY",
}
_FIRST = {"ADD": "INIT", "MKDIR": "DIR"}


@click.command("get-image-updates")
@click.option("--ignore-expiring", is_flag=True, help="leave images out that go by themselves")
@click.pass_obj
def command(target: ImageTarget, ignore_expiring: bool) -> None:
    """Print every directory and image, then what changes, a line each, until Ctrl-C."""

    async def work(client: Client) -> None:
        images = ImageServerClient(client)
        first = True
        async with aclosing(images.follow_images(ignore_expiring=ignore_expiring)) as updates:
            async for update in updates:
                if not update.name and update.directory is None:
                    first = False
                    print("INITIAL list received", flush=True)
                else:
                    print(_line(update, first), flush=True)

    target.run(work)


def _line(update: ImageUpdate, first: bool) -> str:
    word = _WORDS.get(ImageOperation(update.operation), "UNKNOWN")
    name = update.directory.name if update.directory is not None else update.name
    return f"{_FIRST.get(word, word) if first else word}: {name}"
