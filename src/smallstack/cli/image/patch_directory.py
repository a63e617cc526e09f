"""``imagetool patch-directory``: bring a directory to an image."""

import sys
from pathlib import Path

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import run
from smallstack.control.patch import changes_of, patch_directory
from smallstack.images.patch import Patched


@click.command("patch-directory")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="tell what would change, and change nothing")
@click.pass_obj
def command(target: ImageTarget, name: str, directory: Path, dry_run: bool) -> None:
    """Bring DIRECTORY to the image NAME by what differs; only what it lacks is fetched.

    Files are replaced whole, one by one; what the image's filter matches is left alone. Without a
    filter the image is sparse: nothing is removed.
    """
    if dry_run:
        for change in run(changes_of(target.server(), name, directory)):
            what = f" ({', '.join(change.what)})" if change.what else ""
            print(f"{change.kind.value} {change.path.decode(errors='backslashreplace')}{what}")
        return
    line = ProgressLine("fetching")

    async def work() -> Patched:
        with line as progress:
            return await patch_directory(target.server(), name, directory, progress)

    done = run(work())
    for kept in done.kept:
        print(f"imagetool: warning: {kept} stays: something in it is left alone", file=sys.stderr)
    for warning in done.warnings():
        print(f"imagetool: warning: {warning}", file=sys.stderr)
    fetched = line.progress
    print(
        f"{directory}: {done.made} made, {done.removed} removed, {done.settled} with other "
        f"metadata; {fetched.files} objects fetched ({shown_bytes(fetched.file_bytes)})"
    )
