import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.objects.errors import StoreError, StoreSpaceError
from smallstack.objects.index import DEAD_AT_LEAST, HEADER, RECORD, Index, Known, _added
from smallstack.objects.record import added
from smallstack.objects.store import Stored
from smallstack.proto.kinds import Hash


def stored(number: int) -> Stored:
    return Stored(Hash(number.to_bytes(64)), number + 1, number.to_bytes(32), True)


def known(*numbers: int) -> dict[bytes, Known]:
    return {stored(n).hash: Known(stored(n).size, stored(n).blake3) for n in numbers}


@given(
    st.lists(
        st.builds(
            Stored,
            st.binary(min_size=64, max_size=64).map(Hash),
            st.integers(0, (1 << 64) - 1),
            st.binary(min_size=32, max_size=32),
            st.booleans(),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 64) - 1),
        )
    )
)
def test_records_are_those_of_the_reference(objects: list[Stored]) -> None:
    assert added(objects) == b"".join(_added(one.hash, one) for one in objects)


def test_a_record_of_a_digest_of_another_size() -> None:
    with pytest.raises(ValueError, match="a SHA-512 has 64 bytes, a BLAKE3 32"):
        added([stored(1)._replace(blake3=b"")])


def load(path: Path) -> dict[bytes, Known]:
    index = Index(path)
    try:
        return index.load()
    finally:
        index.close()


def test_what_is_added_is_there_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / ".index"
    index = Index(path)
    assert index.load() == {}
    index.add([stored(1), stored(2), stored(3)])
    index.drop([stored(2).hash])
    index.add([stored(1)])
    index.close()
    found = load(path)
    assert found == known(1, 3)
    assert list(found) == list(known(3, 1)), "the last use is last"
    assert path.stat().st_size == len(HEADER) + 5 * RECORD.size


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(HEADER) + 4 * RECORD.size), extra=st.integers(0, 2))
def test_a_file_cut_at_any_byte_loses_only_the_records_behind(
    tmp_path_factory: pytest.TempPathFactory, cut: int, extra: int
) -> None:
    path = tmp_path_factory.mktemp("index") / ".index"
    index = Index(path)
    index.load()
    index.add([stored(n) for n in range(4)])
    index.close()
    os.truncate(path, cut)
    whole = max(0, (cut - len(HEADER)) // RECORD.size)
    index = Index(path)
    assert index.load() == known(*range(whole))
    index.add([stored(10 + n) for n in range(extra)])
    index.close()
    assert load(path) == known(*range(whole), *range(10, 10 + extra))


@settings(max_examples=60, deadline=None)
@given(position=st.integers(len(HEADER), len(HEADER) + 4 * RECORD.size - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_loses_only_its_record(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("index") / ".index"
    index = Index(path)
    index.load()
    index.add([stored(n) for n in range(4)])
    index.close()
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)
    bad = (position - len(HEADER)) // RECORD.size
    assert load(path) == known(*(n for n in range(4) if n != bad))


def test_zeros_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / ".index"
    path.write_bytes(HEADER + bytes(5 * RECORD.size))
    assert load(path) == {}


def test_another_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / ".index"
    path.write_bytes(b"something else altogether")
    assert load(path) == {}
    assert (tmp_path / ".index.bad").read_bytes() == b"something else altogether"
    assert path.read_bytes() == HEADER


def test_compacting_keeps_what_is_alive_in_the_order_of_use(tmp_path: Path) -> None:
    path = tmp_path / ".index"
    index = Index(path)
    index.load()
    index.add([stored(n) for n in range(4)])
    index.drop([stored(0).hash])
    index.compact([stored(n).hash for n in (3, 0, 1)])
    index.add([stored(9)])
    index.close()
    assert path.stat().st_size == len(HEADER) + 4 * RECORD.size
    found = load(path)
    assert found == known(3, 1, 2, 9)
    assert list(found) == list(known(3, 1, 2, 9)), "least recently used first, the rest behind"
    assert sorted(tmp_path.iterdir()) == [path]


def test_worth_compacting_when_most_of_it_is_dead(tmp_path: Path) -> None:
    index = Index(tmp_path / ".index")
    index.load()
    index.add([stored(n) for n in range(DEAD_AT_LEAST)])
    assert not index.worth_compacting(DEAD_AT_LEAST)
    index.drop([stored(n).hash for n in range(DEAD_AT_LEAST)])
    assert index.worth_compacting(0)
    index.compact([])
    assert not index.worth_compacting(0)
    index.close()


def test_a_stale_temporary_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".index~").write_bytes(b"half")
    assert load(tmp_path / ".index") == {}
    assert not (tmp_path / ".index~").exists()


def test_a_full_disk_leaves_the_file_in_step(tmp_path: Path) -> None:
    index = Index(tmp_path / ".index")
    index.load()
    index.add([stored(1)])
    full = os.open("/dev/full", os.O_WRONLY)
    kept, index._fd = index._fd, full
    # /dev/full cannot be truncated: the error of the device comes through either way.
    with pytest.raises((StoreSpaceError, StoreError, OSError)):
        index.add([stored(2)])
    index._fd = kept
    os.close(full)
    index.add([stored(3)])
    index.close()
    assert load(tmp_path / ".index") == known(1, 3)
