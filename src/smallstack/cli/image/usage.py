"""``imagetool usage``: what images take, and what they share."""

from typing import Any

import click

from smallstack.cli.image.progress import shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.output import emit_rows, format_option
from smallstack.client.imageserver import ImageServerClient
from smallstack.proto.imageserver import GetObjectStatisticsForImagesResponse
from smallstack.srpc.client import Client

COLUMNS = ("name", "files", "logical_bytes", "objects", "unique_bytes", "stored_bytes",
           "exclusive_objects", "exclusive_bytes")  # fmt: skip
TOGETHER = "(together)"


@click.command("usage")
@click.argument("names", nargs=-1)
@format_option()
@click.pass_obj
def command(target: ImageTarget, names: tuple[str, ...], output: str) -> None:
    """Tell what the images NAMES take, each and together; without NAMES all of them.

    Logical: all files, as if nothing were shared. Unique: their objects, each counted once.
    Stored: what these take on the server's disk. Exclusive: what no other image needs, which is
    what deleting them would free.
    """

    async def work(client: Client) -> list[dict[str, Any]]:
        images = ImageServerClient(client)
        wanted = names or tuple(sorted(await images.list_images()))
        # One that was listed may have expired by now; one that was named has to be there.
        ignore = not names
        rows = []
        for name in wanted:
            one = await images.get_object_statistics([name], ignore_missing=ignore)
            if one.num_images:
                rows.append(_row(name, one))
        if len(names) != 1:
            together = await images.get_object_statistics(wanted, ignore_missing=ignore)
            rows.append(_row(TOGETHER, together))
        return rows

    rows = target.run(work)
    if output == "table":
        rows = [
            {key: shown_bytes(v) if key.endswith("bytes") else v for key, v in row.items()}
            for row in rows
        ]
    emit_rows(rows, output, COLUMNS)


def _row(name: str, found: GetObjectStatisticsForImagesResponse) -> dict[str, Any]:
    return {
        "name": name,
        "files": found.num_file_inodes,
        "logical_bytes": found.total_file_inode_bytes,
        "objects": found.num_objects,
        "unique_bytes": found.total_object_bytes,
        "stored_bytes": found.stored_object_bytes,
        "exclusive_objects": found.exclusive_objects,
        "exclusive_bytes": found.exclusive_object_bytes,
    }
