"""``imagetool add``: make an image of a directory, a tar archive or a container image."""

import sys
from pathlib import Path
from typing import get_args

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration, run
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.tags import parse_tags
from smallstack.control.images import Added, NewImage, add_image
from smallstack.images.container import AtEnd
from smallstack.images.oci_layout import Choice


@click.command("add")
@click.argument("name")
@click.argument(
    "source", type=click.Path(path_type=Path), metavar="DIRECTORY|TAR|-|debootstrap:SUITE"
)
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
@click.option("--oci-tag", default="", help="which image of a container archive, by its name")
@click.option(
    "--platform-arch", default="amd64", show_default=True, help="which, by its architecture"
)
@click.option(
    "--platform",
    default="",
    metavar="IMAGE",
    help="image whose kernel and init make a container image a VM",
)
@click.option(
    "--at-end",
    type=click.Choice(get_args(AtEnd)),
    default="stop",
    show_default=True,
    help="what such a VM does when its program has ended",
)
@click.option(
    "--copy-mtimes-from",
    default="",
    metavar="IMAGE",
    help="keep its modification times where nothing else has changed",
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
    oci_tag: str,
    platform_arch: str,
    platform: str,
    at_end: AtEnd,
    copy_mtimes_from: str,
    output: str,
) -> None:
    """Make the image NAME of a directory, or of a tar archive (plain, gzip, xz, bzip2 or zstd).

    A container image is known by itself: an OCI layout, an archive of one, or what `docker save`
    writes. Its root becomes the image; with --platform it becomes a VM that runs its program.

    debootstrap:SUITE is a small Debian made now, as `imagetool build` makes it.

    Contents that the server has already are not sent again.
    """
    wanted = {key: values[-1] for key, values in parse_tags(tags).items()}
    if str(source).startswith("debootstrap:"):
        if platform or oci_tag:
            raise click.UsageError("--platform and --oci-tag are for container images, not recipes")
        if copy_mtimes_from:
            raise click.UsageError("--copy-mtimes-from is for a directory or an archive")
        from smallstack.cli.image.build import add_recipe

        recipe = str(source)
        add_recipe(target, name, recipe, filter_file, triggers_file, expires_in, wanted, output)
        return
    new = NewImage(
        name,
        source,
        filter_file,
        triggers_file,
        expires_in,
        wanted,
        send_all,
        which=Choice(oci_tag, platform_arch),
        platform=platform,
        at_end=at_end,
        copy_mtimes_from=copy_mtimes_from,
    )
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
