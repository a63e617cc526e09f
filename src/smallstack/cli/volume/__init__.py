"""``smallstack volume``: disks in files, raw or qcow2, while no VM uses them."""

import click

from smallstack.cli.lazy import LazyGroup

COMMANDS = {
    "diff": ("smallstack.cli.volume.diff", "command", "what differs, as a stream or a list"),
    "apply": ("smallstack.cli.volume.apply", "command", "turn a disk into the new one by a stream"),
    "flatten": ("smallstack.cli.volume.flatten", "command", "one file without backing files"),
    "commit": ("smallstack.cli.volume.commit", "command", "put an overlay into the file below"),
    "compact": ("smallstack.cli.volume.compact", "command", "leave out what an image needs not"),
    "check": ("smallstack.cli.volume.check", "command", "count every reference in an image"),
    "map": ("smallstack.cli.volume.map", "command", "where a disk's bytes come from"),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def group() -> None:
    """Look at disks in files and work on them, while no VM uses them."""
