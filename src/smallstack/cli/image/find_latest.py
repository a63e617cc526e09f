"""``imagetool find-latest``: the newest image in a directory."""

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import fail
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.tags import parse_tags
from smallstack.client.imageserver import ImageServerClient


@click.command("find-latest")
@click.argument("directory")
@click.option("--build-commit-id", default="", help="only built from this commit or branch")
@click.option("--ignore-expiring", is_flag=True, help="leave out images that expire")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="only with it; repeatable")
@format_option()
@click.pass_obj
def command(
    target: ImageTarget,
    directory: str,
    build_commit_id: str,
    ignore_expiring: bool,
    tags: tuple[str, ...],
    output: str,
) -> None:
    """Print the name of the newest image right in DIRECTORY."""
    wanted = parse_tags(tags)
    name = target.run(
        lambda client: ImageServerClient(client).find_latest_image(
            directory.rstrip("/") or ".",
            build_commit_id=build_commit_id,
            ignore_expiring=ignore_expiring,
            tags=wanted,
        )
    )
    if not name:
        fail(f"there is no such image in {directory}: check `imagetool list {directory}`")
    if output == "table":
        print(name)
    else:
        emit_record({"name": name}, output)
