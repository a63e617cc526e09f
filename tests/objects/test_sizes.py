"""What a store remembers of the sizes of its objects."""

import os
from pathlib import Path

from smallstack.objects.store import ObjectStore


def test_sizes_are_remembered_until_an_object_comes_or_goes(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    hashes = [store.put(os.urandom(100 + n)) for n in range(600)]
    right = [100 + n for n in range(600)]
    assert store.sizes([*hashes, bytes(64)], look=False) == [*right, 0]
    path = store.path(hashes[7])
    path.chmod(0o644)
    content = path.read_bytes()
    os.truncate(path, 5)
    assert store.sizes(hashes, look=False) == right, "nobody has told the store"
    assert store.sizes(hashes, look=True)[7] == 5
    store.put(content)  # in the place of the damaged one
    assert store.sizes(hashes, look=False) == right
    store.delete(hashes[3])
    assert store.sizes(hashes, look=False) == [*right[:3], 0, *right[4:]]
    store.close()


def test_what_lies_one_directory_below(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, flat=True)
    hash_ = store.put(b"content")
    assert store.sizes([hash_, bytes(64)], look=True) == [7, 0]
    store.close()
