"""``smallstack volume check``: count every reference in an image."""

import sys
from pathlib import Path

import click

from smallstack.cli.options import fail, guard
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.volume.source import FILE


@click.command("check")
@click.argument("image", type=FILE)
@format_option()
def command(image: Path, output: str) -> None:
    """Count every reference in the qcow2 IMAGE; exit with 1 when it is damaged, 3 for leaks."""

    def work() -> dict[str, object]:
        from smallstack.volumes.qcow2.chain import Files
        from smallstack.volumes.qcow2.errors import DiskUnsupportedError

        with Files() as files:
            opened = files.open_image(image)
            if opened is None:
                raise DiskUnsupportedError(path=image, detail="it is not a qcow2 image")
            return {"virtual_size": opened.size, "dirty": opened.dirty, **opened.check()}

    found = guard(work)
    emit_record(found, output)
    if found["corruptions"]:
        fail(f"{image} is damaged: {found['problem']}")
    if found["leaks"]:
        sys.exit(3)
