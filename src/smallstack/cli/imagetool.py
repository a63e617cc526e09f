"""``imagetool``: make images, list them, look at them, fetch them."""

from pathlib import Path

import click

from smallstack.cli.image.target import DEFAULT_IMAGE_SERVER, ImageTarget
from smallstack.cli.lazy import LazyGroup

COMMANDS = {
    "add": ("smallstack.cli.image.add", "command", "make an image of a directory or a tar archive"),
    "list": ("smallstack.cli.image.list_images", "command", "the names of all images"),
    "get": ("smallstack.cli.image.get", "command", "lay an image out as a directory"),
    "show": ("smallstack.cli.image.show", "command", "what is known of an image"),
    "mkdir": ("smallstack.cli.image.mkdir", "command", "make a directory for images"),
    "listdirs": ("smallstack.cli.image.listdirs", "command", "the directories of images"),
    "delete": ("smallstack.cli.image.delete", "command", "delete an image for good"),
    "find-latest": (
        "smallstack.cli.image.find_latest",
        "command",
        "the newest image in a directory",
    ),
    "find-latest-image": (
        "smallstack.cli.image.find_latest",
        "command",
        "the same as find-latest",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS)
@click.version_option(version="0.1.0", prog_name="imagetool")
@click.option(
    "--image-server",
    "--image-server-hostname",
    "address",
    default=DEFAULT_IMAGE_SERVER,
    envvar="SMALLSTACK_IMAGE_SERVER",
    show_default=True,
    help="host[:port] of the image server",
)
@click.option(
    "--cert-directory",
    type=click.Path(path_type=Path),
    default=Path("~/.ssl"),
    envvar="SMALLSTACK_CERT_DIRECTORY",
    show_default=True,
    help="directory with the client's key and certificate files",
)
@click.option(
    "--plain",
    is_flag=True,
    envvar="SMALLSTACK_PLAIN",
    help="no TLS: only for a daemon that was started with --insecure",
)
@click.pass_context
def group(ctx: click.Context, address: str, cert_directory: Path, plain: bool) -> None:
    """Make images of directories and archives, list them, look at them, fetch them."""
    ctx.obj = ImageTarget(address, cert_directory.expanduser(), plain)


def main() -> None:
    """The program."""
    group(prog_name="imagetool")


if __name__ == "__main__":
    main()
