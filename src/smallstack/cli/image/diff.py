"""``imagetool diff``: what differs between two images."""

import asyncio
from typing import Any

import click

from smallstack.cli.image.progress import shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.output import emit_record, emit_rows, format_option
from smallstack.control.images import show_image
from smallstack.images.diff import Change, Totals, differences, totals
from smallstack.proto.image import Image
from smallstack.srpc.client import Client

COLUMNS = ("change", "path", "what", "size", "new_size")


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option("--stat", is_flag=True, help="sums alone")
@click.option("--no-mtime", is_flag=True, help="leave out what differs in its time alone")
@format_option()
@click.pass_obj
def command(
    target: ImageTarget, old: str, new: str, stat: bool, no_mtime: bool, output: str
) -> None:
    """Show what is different in the image NEW from the image OLD. Exit code 1: something is.

    Paths that were added, removed or changed, and in what; with the sums of objects that only one
    of them needs, which is what a machine with the other one would fetch.
    """
    changes, sums, others = target.run(lambda client: compare(client, old, new, no_mtime=no_mtime))
    record: dict[str, Any] = {**sums._asdict(), "differs_beside_files": others}
    if stat and output == "table":
        print(_summary(sums, others))
    elif stat:
        emit_record(record, output)
    elif output != "table":
        emit_rows([_row(change) for change in changes], output, COLUMNS)
    elif changes or others:
        emit_rows([_row(change) for change in changes], output, COLUMNS)
        print(_summary(sums, others))
    if changes or others:
        raise SystemExit(1)


async def compare(
    client: Client, old: str, new: str, *, no_mtime: bool
) -> tuple[list[Change], Totals, list[str]]:
    """The changes, their sums, and what differs beside the files. Raises ImageError."""
    before, _ = await show_image(client, old)
    after, _ = await show_image(client, new)
    trees = before.file_system, after.file_system
    assert trees[0] is not None
    assert trees[1] is not None
    found = await asyncio.to_thread(list, differences(trees[0], trees[1]))
    if no_mtime:
        found = [change for change in found if change.what != ("mtime",)]
    return found, totals(trees[0], trees[1], found), _beside(before, after)


def _beside(old: Image, new: Image) -> list[str]:
    differs = {
        "filter": old.filter != new.filter,
        "triggers": old.triggers != new.triggers,
        "packages": old.packages != new.packages,
        "tags": old.tags != new.tags,
    }
    return [name for name, is_other in differs.items() if is_other]


def _row(change: Change) -> dict[str, Any]:
    return {
        "change": change.kind.value,
        "path": change.path.decode(errors="backslashreplace"),
        "what": list(change.what),
        "size": None if change.old is None else change.old.size,
        "new_size": None if change.new is None else change.new.size,
    }


def _summary(sums: Totals, others: list[str]) -> str:
    line = (
        f"{sums.added} added, {sums.removed} removed, {sums.changed} changed; "
        f"{sums.new_objects} objects are new ({shown_bytes(sums.new_object_bytes)}), "
        f"{sums.gone_objects} gone ({shown_bytes(sums.gone_object_bytes)})"
    )
    return line + (f"; other {', '.join(others)}" if others else "")
