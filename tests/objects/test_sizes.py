"""Sizes of stored objects, many at a time."""

import os
from pathlib import Path

import pytest

from smallstack.objects.sender import sizes
from smallstack.objects.store import ObjectStore


@pytest.mark.parametrize("flat", [False, True])
def test_sizes_are_what_the_files_have(tmp_path: Path, flat: bool) -> None:
    store = ObjectStore(tmp_path, flat=flat)
    hashes: list[bytes] = [store.put(os.urandom(100 + n)) for n in range(600)]
    right = [100 + n for n in range(600)]
    assert sizes(store.descriptor, flat, [*hashes, bytes(64)]) == [*right, 0]
    store.path(hashes[9]).unlink()
    assert sizes(store.descriptor, flat, [*hashes]) == [*right[:9], 0, *right[10:]]
    store.close()
