"""``smallstack volume diff``: what differs between two disks."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from smallstack.cli.options import fail, guard
from smallstack.cli.volume.source import FILE

if TYPE_CHECKING:
    from smallstack.volumes.qcow2.chain import Disk, Files
    from smallstack.volumes.qcow2.compare import Extents


@click.command("diff")
@click.argument("disks", nargs=-1, type=FILE, required=True, metavar="[OLD] NEW")
@click.option("--old-snapshot", help="OLD as it was at this snapshot (id or name)")
@click.option("--new-snapshot", help="NEW as it was at this snapshot (id or name)")
@click.option("--since", help="what this bitmap of NEW marks, in place of a comparison with OLD")
@click.option("--extents", "listed", is_flag=True, help="list the extents instead, as JSON lines")
@click.option("-o", "--output", type=FILE, help="write the stream to this file [default: stdout]")
@click.option("--level", type=click.IntRange(1, 19), default=1, show_default=True, help="of zstd")
@click.option(
    "--no-old-digests",
    is_flag=True,
    help="do not tell what the blocks were before: faster, but no wrong disk is noticed",
)
@click.option(
    "--resume",
    type=FILE,
    help="only the rest of the stream: a file with what `volume apply --progress` printed",
)
def command(
    disks: tuple[Path, ...],
    old_snapshot: str | None,
    new_snapshot: str | None,
    since: str | None,
    listed: bool,
    output: Path | None,
    level: int,
    no_old_digests: bool,
    resume: Path | None,
) -> None:
    """Write a stream that turns the disk OLD into NEW. Only tables are read to find out what it is.

    OLD and NEW can be one image at two snapshots, an overlay and what is below it, or any others
    that share files. What they do not share counts as different.
    """
    if len(disks) != (1 if since else 2):
        raise click.UsageError("give OLD and NEW, or with --since only NEW")
    if not listed and output is None and sys.stdout.isatty():
        fail("the stream is not for a terminal: name a file with -o, or use --extents", 2)

    def work() -> None:
        from smallstack.volumes.qcow2.chain import Files
        from smallstack.volumes.qcow2.extents import differing
        from smallstack.volumes.qcow2.extents import since as marked

        with Files() as files:
            new = files.open(disks[-1], snapshot=new_snapshot)
            if since is not None:
                _give(files, new, new, marked(new, since), with_old=False)
            else:
                old = files.open(disks[0], snapshot=old_snapshot)
                _give(files, old, new, differing(old, new), with_old=not no_old_digests)

    def _give(files: "Files", old: "Disk", new: "Disk", extents: "Extents", with_old: bool) -> None:
        from smallstack.volumes.qcow2.place import write_whole
        from smallstack.volumes.qcow2.stream import plan_stream, write_stream

        if listed:
            for offset, length, zero in extents:
                print(json.dumps({"start": offset, "length": length, "zero": zero}))
            return
        plan = plan_stream(old, new, extents, old_digests=with_old)
        first, chain = _resume(resume, plan.identity) if resume else (0, None)

        def send(out: BinaryIO) -> None:
            write_stream(files, old, new, plan, out, level=level, first_block=first, chain=chain)
            out.flush()

        if output is None:
            send(sys.stdout.buffer)
            return

        def fill(fd: int) -> None:
            with open(fd, "wb", closefd=False) as file:
                send(file)

        write_whole(output, fill)

    guard(work)


def _resume(file: Path, identity: bytes) -> tuple[int, bytes]:
    try:
        told = json.loads(file.read_bytes())
        known, first = bytes.fromhex(told["identity"]), int(told["next_block"])
        chain = bytes.fromhex(told["chain"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{file}: not what `volume apply --progress` printed ({error})")
    if known != identity:
        fail(
            f"{file} is about another stream: a disk has changed since, or other options were given"
        )
    return first, chain
