"""``imagetool build``: make an image of a manifest."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from smallstack.cli.image.progress import ProgressLine, shown_bytes
from smallstack.cli.image.target import ImageTarget
from smallstack.cli.options import Duration, fail, guard, run
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.tags import parse_tags
from smallstack.control.building.build import Built, build_image
from smallstack.control.building.plan import BuildOptions, plan
from smallstack.images.model import summarise

RECIPE = "debootstrap:"


@click.command("build")
@click.argument("name")
@click.argument("manifest", metavar="MANIFEST|debootstrap:SUITE")
@click.option("--base", type=click.Path(path_type=Path), help="directory that is the source image")
@click.option("--mirror", default="", help="where the packages of a bootstrap are fetched")
@click.option(
    "--apt-sources",
    "sources",
    default="image",
    show_default=True,
    metavar="image|host|FILE",
    help="whose sources.list says where packages are",
)
@click.option("--lock", is_flag=True, help="look for packages anew and write package-lock")
@click.option(
    "--output",
    "place",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.tar",
    help="write the tree there instead of uploading it",
)
@click.option("--keep", type=click.Path(path_type=Path), help="leave the tree there, failed or not")
@click.option("--dry-run", is_flag=True, help="print what would be done")
@click.option("--verbose", "-v", is_flag=True, help="show the output of every command")
@click.option("--expires-in", type=Duration(), default=0, help="delete it after, such as 24h")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="repeatable")
@format_option()
@click.pass_obj
def command(
    target: ImageTarget,
    name: str,
    manifest: str,
    base: Path | None,
    mirror: str,
    sources: str,
    lock: bool,
    place: Path | None,
    keep: Path | None,
    dry_run: bool,
    verbose: bool,
    expires_in: int,
    tags: tuple[str, ...],
    output: str,
) -> None:
    """Build the image NAME of a manifest directory, or of a plain Debian suite.

    Takes root. The same manifest, source image and packages give the same image, bit for bit.
    """
    with contextlib.ExitStack() as stack:
        options = BuildOptions(
            manifest=stack.enter_context(_manifest(manifest)),
            name=name,
            base=base,
            mirror=mirror,
            sources=sources,
            lock=lock,
            keep=keep,
            output=place,
            expires_in_ns=expires_in,
            tags={key: values[-1] for key, values in parse_tags(tags).items()},
        )
        if dry_run:
            for line in guard(lambda: plan(options)):
                print(line)
            return
        built = _build(target, options, verbose)
    _print(name, built, output)


@contextlib.contextmanager
def _manifest(
    text: str, filter_file: Path | None = None, triggers_file: Path | None = None
) -> Iterator[Path]:
    """The manifest's directory; one is made for ``debootstrap:SUITE``."""
    if not text.startswith(RECIPE):
        yield Path(text)
        return
    suite = text.removeprefix(RECIPE)
    if not suite:
        fail("name a suite: debootstrap:bookworm", 2)
    with tempfile.TemporaryDirectory(prefix="smallstack-recipe-") as made:
        recipe = {"Bootstrap": {"Type": "debootstrap", "Suite": suite, "Variant": "minbase"}}
        Path(made, "manifest").write_text(json.dumps(recipe))
        for name, source in (("filter", filter_file), ("triggers", triggers_file)):
            if source is not None:
                Path(made, name).symlink_to(source.absolute())
        yield Path(made)


def add_recipe(
    target: ImageTarget,
    name: str,
    recipe: str,
    filter_file: Path | None,
    triggers_file: Path | None,
    expires_in: int,
    tags: dict[str, str],
    output: str,
) -> None:
    """What ``imagetool add NAME debootstrap:SUITE`` does."""
    with _manifest(recipe, filter_file, triggers_file) as manifest:
        options = BuildOptions(manifest, name, expires_in_ns=expires_in, tags=tags)
        built = _build(target, options, verbose=False)
    _print(name, built, output)


def _build(target: ImageTarget, options: BuildOptions, verbose: bool) -> Built:
    line = ProgressLine("reading")

    async def work() -> Built:
        # Made here: its credentials are asked for only when something is to be fetched or sent.
        needed = options.output is None or (options.base is None and _has_source(options.manifest))
        server = target.server() if needed else None
        with line as progress:
            return await build_image(options, server, progress, _tell, _echo if verbose else None)

    return run(work())


def _has_source(manifest: Path) -> bool:
    from smallstack.images.manifest import load_manifest

    return bool(load_manifest(manifest).recipe.source_image)


def _tell(text: str) -> None:
    print(f"imagetool: {text}", file=sys.stderr, flush=True)


def _echo(text: str) -> None:
    print(text, file=sys.stderr)


def _print(name: str, built: Built, output: str) -> None:
    for warning in built.warnings:
        print(f"imagetool: warning: {warning}", file=sys.stderr)
    if built.lock is not None:
        print(f"imagetool: wrote {built.lock}", file=sys.stderr)
    summary = summarise(built.tree)
    if output == "table":
        print(
            f"{name}: {summary.files} files ({shown_bytes(summary.data_bytes)}), "
            f"{len(built.packages)} packages, tree {built.digest}"
        )
        return
    record = {
        "name": name,
        "tree": built.digest,
        "source_date_epoch": built.epoch,
        "files": summary.files,
        "data_bytes": summary.data_bytes,
        "objects": summary.objects,
        "object_bytes": summary.object_bytes,
        "packages": len(built.packages),
        "uploaded": built.added.uploaded if built.added else 0,
        "uploaded_bytes": built.added.uploaded_bytes if built.added else 0,
        "warnings": built.warnings,
    }
    emit_record(record, output)
