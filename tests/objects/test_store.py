import hashlib
import io
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.objects.errors import (
    ObjectCorruptError,
    ObjectNotStoredError,
    ObjectSizeError,
    StoreBusyError,
    StoreError,
)
from smallstack.objects.holes import SIZE as HOLE
from smallstack.objects.store import IN_MEMORY, ObjectStore
from smallstack.proto.kinds import Hash

SMALL = b"some content"
LARGE = bytes(range(256)) * (IN_MEMORY // 128)


def files(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    )


@pytest.mark.parametrize("content", [SMALL, LARGE, b"x", LARGE[:IN_MEMORY], LARGE[: IN_MEMORY + 1]])
def test_an_object_is_where_upstream_has_it(tmp_path: Path, content: bytes) -> None:
    store = ObjectStore(tmp_path)
    hash_ = store.put(content)
    digits = hashlib.sha512(content).hexdigest()
    assert hash_.hex() == digits
    assert files(tmp_path) == [f"{digits[:2]}/{digits[2:4]}/{digits[4:]}"]
    assert store.path(hash_).read_bytes() == content
    assert store.size(hash_) == len(content)
    with store.open(hash_) as file:
        assert file.read() == content
    assert list(store.list()) == [(hash_, len(content))]
    assert store.delete(hash_) == len(content)
    assert store.delete(hash_) == 0
    assert store.size(hash_) is None
    assert files(tmp_path) == []
    store.close()


def test_a_file_object_is_read_to_its_end(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    assert store.put(io.BytesIO(LARGE)) == hashlib.sha512(LARGE).digest()


def test_wrong_digest_leaves_nothing(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for content in (SMALL, LARGE):
        with pytest.raises(ObjectCorruptError) as caught:
            store.put(content, expected=Hash(bytes(64)))
        assert hashlib.sha512(content).hexdigest() in str(caught.value)
        assert "\n" not in str(caught.value)
        assert files(tmp_path) == []


def test_wrong_size_leaves_nothing(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    with pytest.raises(ObjectSizeError), store.incoming(len(LARGE) + 1) as short:
        short.write(LARGE)
        short.finish()
    with pytest.raises(ObjectSizeError), store.incoming(len(LARGE) - 1) as long:
        long.write(LARGE)
    with pytest.raises(ValueError, match="at least one byte"):
        store.put(b"")
    assert files(tmp_path) == []


def test_added_tells_whether_it_was_there(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, with_blake3=True)
    for content in (SMALL, LARGE):
        for added in (True, False):
            with store.incoming(len(content)) as incoming:
                for start in range(0, len(content), 100_000):
                    incoming.write(content[start : start + 100_000])
                stored = incoming.finish()
            assert stored.added is added
            assert stored.blake3 == blake3(content).digest()
            assert stored.size == len(content)


@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_a_damaged_object_is_replaced_when_it_comes_again(tmp_path: Path, content: bytes) -> None:
    store = ObjectStore(tmp_path)
    hash_ = store.put(content)
    path = store.path(hash_)
    for damaged in (content[:-1], content[:-1] + b"!", b""):
        path.chmod(0o644)
        path.write_bytes(damaged)
        with pytest.raises(ObjectCorruptError):
            store.verify(hash_)
        assert store.put(content) == hash_
        assert store.verify(hash_).size == len(content)


def test_what_was_on_its_way_is_removed_at_the_next_start(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    incoming = store.incoming(len(LARGE) * 2)
    incoming.write(LARGE)
    assert files(tmp_path) == [".incoming/0~"]
    store.close()
    ObjectStore(tmp_path).close()
    assert files(tmp_path) == []
    incoming.abort()


def test_one_process_has_the_store(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    with pytest.raises(StoreBusyError, match="in use by another process"):
        ObjectStore(tmp_path)
    store.close()
    ObjectStore(tmp_path).close()


def test_other_files_are_no_objects(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    hash_ = store.put(SMALL)
    (store.path(hash_).parent / (store.path(hash_).name + "~")).write_bytes(b"left")
    (store.path(hash_).parent / ("g" * 124)).write_bytes(b"left")
    (tmp_path / ".lru").write_bytes(b"left")
    (tmp_path / "zz").mkdir()
    (tmp_path / "00").write_bytes(b"a file where a directory should be")
    assert [found for found, _ in store.list()] == [hash_]


def test_missing_and_malformed(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    with pytest.raises(ObjectNotStoredError, match="is not in"):
        store.open(bytes(64))
    with pytest.raises(ValueError, match="64 bytes"):
        store.path(b"../../etc/passwd")


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot use the object store"):
        ObjectStore(tmp_path / "file")


def test_before_commit_is_told_before_the_store_looks(tmp_path: Path) -> None:
    told: list[tuple[Hash, int | None]] = []
    store = ObjectStore(tmp_path)
    for _ in range(2):
        with store.incoming(
            len(SMALL), before_commit=lambda h: told.append((h, store.size(h)))
        ) as incoming:
            incoming.write(SMALL)
            hash_ = incoming.finish().hash
    assert told == [(hash_, None), (hash_, len(SMALL))]


def test_a_directory_that_was_removed_is_made_again(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    path = store.path(store.put(SMALL))
    path.unlink()
    path.parent.rmdir()
    path.parent.parent.rmdir()
    store.put(SMALL)
    assert path.read_bytes() == SMALL


def test_descriptors_are_closed(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for _ in range(20):
        with pytest.raises(ObjectCorruptError):
            store.put(LARGE, expected=Hash())
        store.put(LARGE)
        store.sync()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_store_of_two_levels_becomes_flat(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    contents = [b"%d" % number for number in range(1, 300)]
    before = {store.put(content): len(content) for content in contents}
    store.close()
    for _ in range(2):
        flat = ObjectStore(tmp_path, flat=True)
        assert dict(flat.list()) == before
        for hash_ in before:
            assert flat.path(hash_) == tmp_path / hash_.hex()[:2] / hash_.hex()[2:]
            assert flat.verify(hash_).hash == hash_
        flat.close()
    assert all(path.is_file() for path in tmp_path.glob("??/*"))


def test_a_move_that_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    before = {store.put(b"%d" % number): 3 for number in range(100, 200)}
    store.close()
    moved = sorted(before)[:40]
    for hash_ in moved:
        path = store.path(hash_)
        path.rename(path.parent.parent / hash_.hex()[2:])
    flat = ObjectStore(tmp_path, flat=True)
    assert dict(flat.list()) == before
    flat.close()


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 300_000)), min_size=1, max_size=8),
    step=st.sampled_from([1000, 65_536, 65_537, 1 << 20]),
)
def test_long_runs_of_zeros_take_no_room(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]], step: int
) -> None:
    data = b"".join((b"\0" if zeros else b"x") * size for zeros, size in pieces)
    digest = Hash(hashlib.sha512(data).digest())
    store = ObjectStore(tmp_path_factory.mktemp("store"), flat=True)
    one = store.unchecked(len(data), digest)
    for at in range(0, len(data), step):
        one.write(data[at : at + step])
    assert one.left == 0
    os.fsync(one.descriptor)
    blocks = [data[at : at + HOLE] for at in range(0, len(data), HOLE)]
    written = sum(len(block) < HOLE or any(block) for block in blocks)
    if step % HOLE == 0:
        assert os.fstat(one.descriptor).st_blocks * 512 <= written * HOLE + 8192
    one.commit(bytes(32), b"")
    one.abort()
    assert store.path(digest).read_bytes() == data
    store.close()
