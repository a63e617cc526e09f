"""``smallstack volume apply``: turn a disk into the new one by a diff stream."""

import json
import sys
from pathlib import Path

import click

from smallstack.cli.options import guard
from smallstack.cli.volume.source import FILE


@click.command("apply")
@click.argument("files", nargs=-1, type=FILE, required=True, metavar="STREAM DISK")
@click.option(
    "--disk-format",
    type=click.Choice(["raw", "qcow2"]),
    help="what DISK is [default: qcow2 if it begins so, else raw]",
)
@click.option(
    "--progress", is_flag=True, help="print how far an apply to DISK was cut off, for diff --resume"
)
def command(files: tuple[Path, ...], disk_format: str | None, progress: bool) -> None:
    """Apply STREAM (a file, or - for standard input) to DISK, every block checked.

    A qcow2 DISK becomes the new one at the end, in one step. A raw one is changed in place; when
    that was cut off, the same command goes on where it was.
    """
    if len(files) != (1 if progress else 2):
        raise click.UsageError("give STREAM and DISK, or with --progress only DISK")
    if progress:
        guard(lambda: _progress(files[0]))
    else:
        guard(lambda: _apply(files[0], files[1], disk_format))


def _progress(disk: Path) -> None:
    from smallstack.volumes.qcow2.apply import progress

    state = progress(disk)
    if state is not None:
        told = {
            "identity": state.identity.hex(),
            "next_block": state.next_block,
            "chain": state.chain.hex(),
        }
        print(json.dumps(told))


def _apply(stream: Path, disk: Path, disk_format: str | None) -> None:
    from smallstack.volumes.qcow2.apply import apply_qcow2, apply_raw
    from smallstack.volumes.qcow2.chain import Files
    from smallstack.volumes.qcow2.stream import StreamReader

    with Files() as files:
        is_qcow2 = files.open(disk, disk_format=disk_format).image is not None
    work = apply_qcow2 if is_qcow2 else apply_raw
    if str(stream) == "-":
        done = work(StreamReader(sys.stdin.buffer, "standard input"), disk)
    else:
        with stream.open("rb") as file, stream.open("rb") as again:
            look = StreamReader(again, str(stream))
            done = work(StreamReader(file, str(stream)), disk, look)
    print(f"{done.blocks} blocks, {done.bytes} bytes written", file=sys.stderr)
