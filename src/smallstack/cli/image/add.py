"""``imagetool add``: make an image of a directory or a tar archive."""

import sys
from pathlib import Path

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration, run
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.tags import parse_tags
from smallstack.control.images import Added, NewImage, add_image


@click.command("add")
@click.argument("name")
@click.argument("source", type=click.Path(path_type=Path), metavar="DIRECTORY|TAR|-")
@click.option(
    "--filter",
    "filter_file",
    type=click.Path(path_type=Path),
    help="file of path expressions to leave out; makes it an image of a whole machine",
)
@click.option(
    "--trigger",
    "triggers_file",
    type=click.Path(path_type=Path),
    help="JSON file of services to restart when their files change",
)
@click.option("--expires-in", type=Duration(), default=0, help="delete it after, such as 24h")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="repeatable")
@click.option(
    "--send-all", is_flag=True, help="send contents the server has too: replaces damaged ones"
)
@format_option()
@click.pass_obj
def command(
    target: ImageTarget,
    name: str,
    source: Path,
    filter_file: Path | None,
    triggers_file: Path | None,
    expires_in: int,
    tags: tuple[str, ...],
    send_all: bool,
    output: str,
) -> None:
    """Make the image NAME of a directory, or of a tar archive (plain, gzip, xz, bzip2 or zstd).

    Contents that the server has already are not sent again.
    """
    wanted = {key: values[-1] for key, values in parse_tags(tags).items()}
    new = NewImage(name, source, filter_file, triggers_file, expires_in, wanted, send_all)
    line = ProgressLine("reading")

    async def work() -> Added:
        with line as progress:
            return await add_image(target.server(), new, progress)

    added = run(work())
    for warning in added.warnings:
        print(f"imagetool: warning: {warning}", file=sys.stderr)
    summary = added.summary
    if output == "table":
        print(
            f"{name}: {summary.files} files ({shown_bytes(summary.data_bytes)}), "
            f"{summary.objects} objects, {added.uploaded} of them new "
            f"({shown_bytes(added.uploaded_bytes)})"
        )
        return
    record = {
        "name": name,
        "files": summary.files,
        "data_bytes": summary.data_bytes,
        "objects": summary.objects,
        "object_bytes": summary.object_bytes,
        "uploaded": added.uploaded,
        "uploaded_bytes": added.uploaded_bytes,
        "warnings": added.warnings,
    }
    emit_record(record, output)
