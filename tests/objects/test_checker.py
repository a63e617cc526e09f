"""The thread that checks large objects, where `Intake` cannot show it."""

import hashlib
import os
from pathlib import Path

import pytest

from smallstack.objects.checker import WAITING, Checker
from smallstack.objects.errors import ObjectCorruptError, StoreError
from smallstack.objects.store import ObjectStore, Unchecked


def corrupt(hash_: bytes, found: bytes) -> ObjectCorruptError:
    return ObjectCorruptError(hash=hash_.hex(), server="a test", found=found.hex())


def arrived(store: ObjectStore, data: bytes, hash_: bytes | None = None) -> Unchecked:
    one = store.unchecked(len(data), hash_ or hashlib.sha512(data).digest())
    one.write(data)
    return one


def test_what_is_right_gets_its_name_whatever_came_before(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, with_blake3=True, flat=True)
    checker = Checker(store, corrupt)
    contents = [bytes([n]) * 100_000 for n in range(20)]
    for number, data in enumerate(contents):
        checker.add(arrived(store, data, b"?" * 64 if number == 7 else None))
    checker.close()
    right, error = checker.take()
    digests = {hashlib.sha512(data).digest() for n, data in enumerate(contents) if n != 7}
    assert {one.hash for one in right} == digests
    assert isinstance(error, ObjectCorruptError)
    assert {hash_ for hash_, _ in store.list()} == digests
    assert list((tmp_path / ".incoming").iterdir()) == []
    store.close()


def test_a_checker_that_breaks_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path, with_blake3=True, flat=True)
    checker = Checker(store, corrupt)

    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(checker, "_end", broken)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors
    for number in range(2 * WAITING):
        checker.add(arrived(store, b"%d" % number * 1000))
    checker.close()
    right, error = checker.take()
    assert right == []
    assert "broken" in str(error)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - descriptors
    assert list((tmp_path / ".incoming").iterdir()) == []
    store.close()


def test_a_file_that_cannot_be_removed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path, with_blake3=True, flat=True)
    checker = Checker(store, corrupt)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    ones = [arrived(store, b"x" * 5000, b"?" * 64), arrived(store, b"y" * 5000)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        for one in ones:
            checker.add(one)
        checker.close()
    right, error = checker.take()
    assert [one.hash for one in right] == [hashlib.sha512(b"y" * 5000).digest()]
    assert isinstance(error, ObjectCorruptError)
    assert all(one.descriptor == -1 for one in ones)
    store.close()


def test_what_waits_holds_no_descriptor_and_is_missed_when_its_file_goes(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, with_blake3=True, flat=True)
    checker = Checker(store, corrupt)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors
    gone, stays = arrived(store, b"x" * 5000), arrived(store, b"y" * 5000)
    for path in list((tmp_path / ".incoming").iterdir()):
        if path.read_bytes()[:1] == b"x":
            path.unlink()
    for one in (gone, stays):
        one.rest()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - descriptors
    for one in (gone, stays):
        checker.add(one)
    checker.close()
    right, error = checker.take()
    assert [one.hash for one in right] == [hashlib.sha512(b"y" * 5000).digest()]
    assert isinstance(error, StoreError)
    assert all(one.descriptor == -1 for one in (gone, stays))
    store.close()
