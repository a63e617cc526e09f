"""What a command prints for people (a table) and for programs (JSON, YAML, CSV).

Rows are flat mappings of column name to value. Standard output carries nothing else, so every
format can be piped.
"""

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

FORMATS = ("table", "json", "yaml", "csv")
F = TypeVar("F", bound=Callable[..., Any])


def format_option(default: str = "table") -> Callable[[F], F]:
    """The ``--format`` option, the same on every command that prints records."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(FORMATS),
        default=default,
        show_default=True,
        help="how to print the result",
    )


def emit_rows(rows: Sequence[Mapping[str, Any]], output: str, columns: Sequence[str]) -> None:
    """Print ``rows`` in the asked format; ``columns`` gives their order."""
    if output == "json":
        print(json.dumps([{c: row.get(c) for c in columns} for row in rows], indent=4))
    elif output == "yaml":
        print(_yaml([{c: row.get(c) for c in columns} for row in rows]))
    elif output == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([[_text(row.get(c)) for c in columns] for row in rows])
    else:
        _table(rows, columns)


def emit_record(record: Mapping[str, Any], output: str) -> None:
    """Print one record: as a two-column table, or as an object."""
    if output == "json":
        print(json.dumps(record, indent=4))
    elif output == "yaml":
        print(_yaml(record))
    else:
        rows = [{"field": key, "value": value} for key, value in record.items()]
        emit_rows(rows, output, ("field", "value"))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    # Wide enough by itself: a table is often piped into grep, where a wrapped cell is lost.
    cells = [list(columns)] + [[_text(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ",".join(_text(v) for v in value)
    return str(value)


def _yaml(value: Any, indent: int = 0) -> str:
    """Block style with JSON scalars, which every YAML reader takes as they are."""
    pad = "  " * indent
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            nested = isinstance(item, Mapping | list | tuple) and len(item) > 0
            body = f"\n{_yaml(item, indent + 1)}" if nested else f" {json.dumps(item)}"
            lines.append(f"{pad}{json.dumps(str(key))}:{body}")
        return "\n".join(lines)
    if isinstance(value, list | tuple) and value:
        lines = []
        for item in value:
            body = _yaml(item, indent + 1).lstrip()
            lines.append(f"{pad}- {body}")
        return "\n".join(lines)
    return pad + json.dumps(value)
