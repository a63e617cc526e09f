"""``imagetool check``: whether an image is there, and all it needs."""

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import fail, run
from smallstack.cli.output import emit_record, format_option
from smallstack.client.imageserver import ImageServerClient
from smallstack.control.verify import Content, check_content


@click.command("check")
@click.argument("name")
@click.option("--content", is_flag=True, help="and whether the server has every object of it")
@click.option("--verify", is_flag=True, help="and fetch them all, to check their SHA-512")
@format_option()
@click.pass_obj
def command(target: ImageTarget, name: str, content: bool, verify: bool, output: str) -> None:
    """Tell whether there is an image NAME. Exit code 1: there is none, or it lacks something."""
    if not target.run(lambda client: ImageServerClient(client).check_image(name)):
        fail(f"there is no image {name}: check `imagetool list`")
    if not content and not verify:
        return
    line = ProgressLine("checking")

    async def work() -> Content:
        with line as progress:
            return await check_content(target.server(), name, verify=verify, progress=progress)

    found = run(work())
    if output == "table":
        for what, hashes in (("missing", found.missing), ("corrupt", found.corrupt)):
            for hash_ in hashes:
                print(f"{what} {hash_}")
        print(
            f"{name}: {found.objects} objects ({shown_bytes(found.object_bytes)}), "
            f"{len(found.missing)} missing"
            + (f", {len(found.corrupt)} corrupt" if verify else "; contents were not read")
        )
    else:
        emit_record(
            {
                "name": name,
                "objects": found.objects,
                "object_bytes": found.object_bytes,
                "verified": verify,
                "missing": found.missing,
                "corrupt": found.corrupt,
            },
            output,
        )
    if not found.is_right:
        fail(f"{name} cannot be used whole: add its content again with `imagetool add --send-all`")
