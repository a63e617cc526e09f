"""The dict by digest: what it does for many entries at once is what it does for each."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from smallstack.objects.table import Table

NUMBERS = st.sets(st.integers(0, 600), max_size=200)


def digest(number: int) -> bytes:
    return hashlib.sha512(b"%d" % number).digest()


@given(NUMBERS, NUMBERS)
def test_what_is_told_apart_is_there_or_not(held: set[int], asked: set[int]) -> None:
    table = Table({digest(n): str(n) for n in held})
    items = [(digest(n), n) for n in sorted(asked)]
    missing, found = table.apart(items)
    assert missing == [(digest(n), n) for n in sorted(asked - held)]
    assert found == [((digest(n), n), str(n)) for n in sorted(asked & held)]
    assert {key: table.find(key) for key, _ in items} == {
        key: str(n) if n in held else None for key, n in items
    }


@given(NUMBERS, NUMBERS)
def test_what_enters_takes_the_place_of_what_was_there(before: set[int], new: set[int]) -> None:
    items = [(digest(n), n) for n in new]
    table: Table[object] = Table({digest(n): "before" for n in before})
    times: Table[int] = Table({digest(n): 1 for n in before})
    table.enter(items)
    times.enter_all(items, 2)
    old = {digest(n): "before" for n in before}
    assert dict(table) == old | {key: (key, n) for key, n in items}
    assert dict(times) == {digest(n): 2 if n in new else 1 for n in before | new}
    assert len(table) == len(before | new)
