"""``smallstack volume map``: where a disk's bytes come from."""

from pathlib import Path

import click

from smallstack.cli.options import guard
from smallstack.cli.output import emit_rows, format_option
from smallstack.cli.volume.source import FILE, disk_options


@click.command("map")
@click.argument("disk", type=FILE)
@disk_options
@format_option()
def command(
    disk: Path, disk_format: str | None, snapshot: str | None, no_backing: bool, output: str
) -> None:
    """List the stretches of DISK: zeros or data, in which file, at which place there."""

    def work() -> list[dict[str, object]]:
        from smallstack.volumes.qcow2.chain import Files

        with Files() as files:
            opened = files.open(
                disk, snapshot=snapshot, disk_format=disk_format, backing=not no_backing
            )
            return [
                {
                    "start": offset,
                    "length": length,
                    "kind": kind,
                    "file": "" if kind == "hole" else str(opened.layers[layer].path),
                    "offset": place if kind == "data" else None,
                }
                for offset, length, kind, layer, place in opened.view.map()
            ]

    emit_rows(guard(work), output, ("start", "length", "kind", "file", "offset"))
