"""``smallstack volume flatten``: one file without backing files."""

from pathlib import Path

import click

from smallstack.cli.options import Bytes, guard
from smallstack.cli.volume.source import FILE, disk_options


@click.command("flatten")
@click.argument("disk", type=FILE)
@click.argument("output", type=FILE)
@click.option(
    "--output-format", type=click.Choice(["raw", "qcow2"]), default="qcow2", show_default=True
)
@click.option(
    "--compress",
    type=click.Choice(["none", "zlib", "zstd"]),
    default="none",
    show_default=True,
    help="pack the clusters of a qcow2 output",
)
@click.option("--level", type=click.IntRange(1, 19), help="of the compression")
@click.option(
    "--cluster-size",
    type=Bytes(),
    default="64K",
    show_default=True,
    help="of a qcow2 output: a power of two, 512 to 2M",
)
@disk_options
def command(
    disk: Path,
    output: Path,
    output_format: str,
    compress: str,
    level: int | None,
    cluster_size: int,
    disk_format: str | None,
    snapshot: str | None,
    no_backing: bool,
) -> None:
    """Write what DISK shows, with all that is below it, as the one file OUTPUT."""
    if cluster_size not in [1 << bits for bits in range(9, 22)]:
        raise click.UsageError("--cluster-size must be a power of two, 512 to 2M")
    if compress == "zlib" and level is not None and level > 9:
        raise click.UsageError("zlib has levels 1 to 9")

    def work() -> None:
        from smallstack.volumes.qcow2.chain import Files
        from smallstack.volumes.qcow2.rewrite import flatten

        with Files() as files:
            flatten(
                files.open(
                    disk, snapshot=snapshot, disk_format=disk_format, backing=not no_backing
                ),
                output,
                disk_format=output_format,
                cluster_size=cluster_size,
                packing=compress,
                level=level,
            )

    guard(work)
