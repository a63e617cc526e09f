"""docs/methods.md: a row for each method there is, with a test that speaks of it."""

import re
from pathlib import Path

import pytest

from docs.generate import methods
from smallstack.proto.methods import METHODS

ROW = re.compile(
    r"^\| `(?P<name>\S+)` \| (?P<shape>[^|]+) \| (?P<rights>[^|]+) \| (?P<status>[^|]+)"
    r" \| `(?P<test>\S+)` \|$",
    re.MULTILINE,
)
ROWS = {row["name"]: row for row in ROW.finditer(methods.PAGE.read_text())}


def test_every_method_has_a_row() -> None:
    assert ROWS.keys() == METHODS.keys() == methods.registered(), "and both daemons serve it"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_row_says_what_is_so(name: str) -> None:
    row, method = ROWS[name], METHODS[name]
    test = methods.ROOT / row["test"]
    assert methods._words(method).search(test.read_text()) or row["test"] == methods.EVERY
    assert row["rights"].startswith("power") == (not method.public and not method.rights_of)
    assert row["status"].startswith("answers")


def test_what_is_not_served_would_be_told() -> None:
    some = methods.registered() - {"Hypervisor.ListVMs"}
    assert methods.status(METHODS["Hypervisor.ListVMs"], some) == "not served"


def test_a_test_that_is_named_stays_while_it_speaks_of_the_method(tmp_path: Path) -> None:
    method = METHODS["Hypervisor.GetVmInfo"]
    others = [
        path
        for path, text in methods._texts(("hypervisor", "integration")).items()
        if methods._words(method).search(text)
    ]
    assert len(others) > 2
    for path in others:
        assert methods.test_of(method, path) == path
    chosen = methods.test_of(method, "")
    for gone in ("tests/hypervisor/none.py", "tests/hypervisor/web.py"):
        assert methods.test_of(method, gone) == chosen
