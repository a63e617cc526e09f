"""``check-store`` of both daemons: everything on disk is read again and compared.

It may run beside the daemon; only ``--repair`` needs it stopped.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.options import fail, guard
from smallstack.cli.output import emit_record, format_option
from smallstack.objects.check import Checked
from smallstack.settings import Values


@click.command("check-store")
@click.option("--repair", is_flag=True, help="drop what is wrong, so that it is fetched again")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="threads")
@format_option()
@click.pass_obj
def hypervisor(values: Values, repair: bool, jobs: int, output: str) -> None:
    """Read every object of the cache and look at every brick; exit with 1 if anything is wrong.

    An object is compared with its SHA-512 and with what the index says of it. A brick can be judged
    only as far as its file system's super blocks tell. Settings such as --state-dir stand before
    the command's name.
    """
    from smallstack.hypervisor.daemon import STATE_DIR, VOLUME_DIRECTORIES

    state = values[STATE_DIR]
    directories = [Path(d) for d in values[VOLUME_DIRECTORIES]] or [state / "volumes"]

    def work() -> tuple[dict[str, object], dict[str, str]]:
        from smallstack.objects.cache import INDEX
        from smallstack.volumes.brick_check import check_bricks

        cache = state / "objects"
        record, problems, found = _objects(cache, cache / INDEX, jobs)
        record["bricks"] = record["brick_bytes"] = record["pending_bricks"] = 0
        for directory in directories:
            bricks = check_bricks(directory / "bricks")
            record["bricks"] += bricks.bricks
            record["brick_bytes"] += bricks.size
            record["pending_bricks"] += bricks.pending
            problems.update({f"brick {path}": detail for path, detail in bricks.wrong})
        if repair and not found.ok:
            record["repaired"] = _drop_cached(cache, found)
        return record, problems

    _report(work, output)


@click.command("check-store")
@click.option("--repair", is_flag=True, help="delete what is wrong, so that it can be added again")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="threads")
@format_option()
@click.pass_obj
def imageserver(values: Values, repair: bool, jobs: int, output: str) -> None:
    """Read every object of the store and compare it; exit with 1 if anything is wrong.

    `imagetool add --send-all` of the same content puts right what is wrong. Settings such as
    --state-dir stand before the command's name.
    """
    from smallstack.imageserver.daemon import OBJECT_DIR, STATE_DIR

    store = Path(values[OBJECT_DIR] or values[STATE_DIR] / "objects")

    def work() -> tuple[dict[str, object], dict[str, str]]:
        record, problems, found = _objects(store, None, jobs)
        if repair and not found.ok:
            record["repaired"] = _delete_stored(store, found)
        return record, problems

    _report(work, output)


def _objects(
    directory: Path, index: Path | None, jobs: int
) -> tuple[dict[str, Any], dict[str, str], Checked]:
    from smallstack.objects.check import check_objects

    started = time.monotonic()
    with ProgressLine("checking") as progress:

        def changed(found: Checked, objects: int, size: int) -> None:
            progress.files, progress.file_bytes = found.objects, found.size
            progress.total_files, progress.total_bytes = objects, size
            progress.changed(progress)

        found = check_objects(directory, index, changed, jobs)
    seconds = time.monotonic() - started
    record = {
        "directory": str(directory),
        "objects": found.objects,
        "bytes": found.size,
        "wrong": len(found.wrong),
        "missing": len(found.missing),
        "not_indexed": found.unknown,
        "seconds": round(seconds, 3),
        "rate": shown_bytes(found.size / seconds) + "/s",
    }
    problems = {f"object {one.hash.hex()}": one.detail for one in found.wrong}
    problems.update({f"object {hash_.hex()}": "its file is gone" for hash_ in found.missing})
    return record, problems, found


def _drop_cached(directory: Path, found: Checked) -> int:
    from smallstack.objects.cache import ObjectCache

    cache = ObjectCache(directory, 1 << 62)
    try:
        asyncio.run(cache.drop((*(one.hash for one in found.wrong), *found.missing)))
    finally:
        cache.close()
    return len(found.wrong) + len(found.missing)


def _delete_stored(directory: Path, found: Checked) -> int:
    from smallstack.objects.store import ObjectStore

    store = ObjectStore(directory)
    try:
        for one in found.wrong:
            store.delete(one.hash)
    finally:
        store.close()
    return len(found.wrong)


def _report(
    work: Callable[[], tuple[Mapping[str, object], Mapping[str, str]]], output: str
) -> None:
    record, problems = guard(work)
    if output in {"json", "yaml"}:
        listed = [{"name": name, "detail": detail} for name, detail in problems.items()]
        record = {**record, "problems": listed}
    emit_record(record, output)
    for name, detail in problems.items():
        print(f"{name}: {detail}", file=sys.stderr)
    if problems:
        objects = any(name.startswith("object ") for name in problems)
        remedy = "; with the daemon stopped, --repair drops objects that are"
        told = remedy if objects and "repaired" not in record else ""
        fail(f"{len(problems)} thing(s) are wrong{told}")
