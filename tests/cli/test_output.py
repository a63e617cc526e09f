"""Every output format carries the same cells."""

import csv
import io
import json
from typing import Any

import pytest

from smallstack.cli.output import emit_record, emit_rows

ROWS: list[dict[str, Any]] = [
    {"name": "a", "size": 1, "tags": {"k": "v"}, "users": ["x", "y"]},
    {"name": "long name", "size": None, "tags": {}, "users": []},
]
COLUMNS = ("name", "size", "tags", "users")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit_rows(ROWS, "json", COLUMNS)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    emit_rows(ROWS, "csv", COLUMNS)
    lines = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert lines == [
        list(COLUMNS),
        ["a", "1", "k=v", "x,y"],
        ["long name", "", "", ""],
    ]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    emit_rows(ROWS, "table", ("name", "size"))
    assert capsys.readouterr().out == "name       size\na          1\nlong name\n"


def test_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    emit_record({"name": "a", "tags": {"k": "v"}, "users": ["x", {"n": 1}], "none": []}, "yaml")
    assert capsys.readouterr().out == (
        '"name": "a"\n"tags":\n  "k": "v"\n"users":\n  - "x"\n  - "n": 1\n"none": []\n'
    )
