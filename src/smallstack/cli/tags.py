"""Tags on the command line."""

from collections.abc import Iterable

import click


def parse_tags(tags: Iterable[str]) -> dict[str, list[str]]:
    """``KEY=VALUE`` words by key; click.BadParameter for anything else."""
    found: dict[str, list[str]] = {}
    for tag in tags:
        key, separator, value = tag.partition("=")
        if not (key and separator):
            raise click.BadParameter(f"{tag!r} is no tag: write KEY=VALUE", param_hint="'--tag'")
        found.setdefault(key, []).append(value)
    return found
