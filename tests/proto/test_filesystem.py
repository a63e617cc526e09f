"""Packed trees: the builder, the checks, the views."""

import struct

import pytest
from hypothesis import given, settings

from smallstack.proto import tree as tree_module
from smallstack.proto.errors import TreeError
from smallstack.proto.filesystem import ENTRY, INODE, FileSystem, FileSystemBuilder
from smallstack.proto.records import from_record, to_record
from tests.proto.strategies import trees


def sample() -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=1)
    etc = builder.add(mode=0o40700, uid=3)
    passwd = builder.add(
        mode=0o100644,
        size=5000,
        hash=b"p" * 64,
        mtime_ns=7,
        xattrs={b"user.b": b"2", b"user.a": b"1"},
    )
    same = builder.add(mode=0o100644, size=1, hash=b"q" * 64)
    link = builder.add(mode=0o120777, target=b"etc/passwd", mtime_ns=0)
    null = builder.add(mode=0o20666, rdev=0x103)
    empty = builder.add(mode=0o100600)
    builder.link(0, b"etc", etc)
    builder.link(etc, b"passwd", passwd)
    builder.link(etc, b"empty", empty)
    builder.link(0, b"hard", passwd)
    builder.link(0, b"one", same)
    builder.link(0, b"link", link)
    builder.link(0, b"null", null)
    return builder.build()


def test_views() -> None:
    tree = sample()
    assert len(tree) == 7
    assert [path for path, _ in tree.walk()] == [
        b"/",
        b"/etc",
        b"/etc/passwd",
        b"/etc/empty",
        b"/hard",
        b"/one",
        b"/link",
        b"/null",
    ]
    assert tree.lookup(b"/etc/passwd") == tree.lookup(b"hard") == 2
    assert tree.lookup(b"/") == tree.lookup(b"") == 0
    assert tree.lookup(b"/etc/nothing") is None
    assert tree.lookup(b"/hard/below") is None
    assert tree.children(2) == []
    passwd = tree.inode(2)
    assert (passwd.size, passwd.hash, passwd.mtime_ns) == (5000, b"p" * 64, 7)
    assert passwd.xattrs == {b"user.a": b"1", b"user.b": b"2"}
    assert tree.inode(4).target == b"etc/passwd"
    assert tree.inode(5).rdev == 0x103
    assert tree.inode(6).hash == b""
    for index in (-1, 7):
        with pytest.raises(IndexError):
            tree.inode(index)
        with pytest.raises(IndexError):
            tree.children(index)


def test_mtimes_that_are_not_known() -> None:
    tree = sample()
    assert tree.inode(0).mtime_ns == 1
    assert tree.inode(1).mtime_ns is None
    assert tree.inode(4).mtime_ns == 0
    assert tree.inode(6).mtime_ns == 0


def test_sums() -> None:
    tree = sample()
    assert tree.objects() == {b"p" * 64: 5000, b"q" * 64: 1}
    # etc, passwd in two blocks, one, empty, the link
    assert tree.usage_estimate() == 4096 + 8192 + 4096 + 0 + 64
    assert (tree.num_regular_inodes, tree.total_data_bytes, tree.directory_count) == (3, 5001, 2)


def test_equality_is_of_content() -> None:
    assert sample() == sample()
    other = FileSystemBuilder()
    assert sample() != other.build()
    assert sample() != "tree"


@settings(max_examples=80, deadline=None)
@given(trees())
def test_records_and_back(tree: FileSystem) -> None:
    assert from_record(to_record(tree)) == tree


def test_inodes_without_a_name_are_left_out() -> None:
    builder = FileSystemBuilder()
    lost = builder.add(mode=0o40755)
    builder.link(lost, b"x", builder.add(mode=0o100644))
    kept = builder.add(mode=0o40755)
    builder.link(0, b"kept", kept)
    builder.link(kept, b"y", builder.add(mode=0o100644))
    tree = builder.build()
    assert [path for path, _ in tree.walk()] == [b"/", b"/kept", b"/kept/y"]
    assert len(tree) == 3
    assert len(tree.entries) == 2 * ENTRY.size


def test_deep_trees_need_no_recursion() -> None:
    builder = FileSystemBuilder()
    parent = 0
    for _ in range(5000):
        child = builder.add(mode=0o40755)
        builder.link(parent, b"d", child)
        parent = child
    tree = builder.build()
    assert sum(1 for _ in tree.walk()) == 5001
    assert from_record(to_record(tree)) == tree


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_bad_names(name: bytes) -> None:
    builder = FileSystemBuilder()
    builder.link(0, name, builder.add(mode=0o100644))
    with pytest.raises(TreeError, match="no file name"):
        builder.build()


def test_good_names() -> None:
    builder = FileSystemBuilder()
    for name in (b"...", b".a", b"x" * 255, b"\xff\n", b" "):
        builder.link(0, name, builder.add(mode=0o100644))
    assert len(builder.build()) == 6


def test_the_same_name_twice() -> None:
    builder = FileSystemBuilder()
    for name in (b"b", b"a", b"c", b"a"):
        builder.link(0, name, builder.add(mode=0o100644))
    with pytest.raises(TreeError, match="holds b'a' twice"):
        builder.build()


def test_directories_have_one_name() -> None:
    builder = FileSystemBuilder()
    one = builder.add(mode=0o40755)
    builder.link(0, b"a", one)
    builder.link(0, b"b", one)
    with pytest.raises(TreeError, match="second name"):
        builder.build()


def test_loops() -> None:
    builder = FileSystemBuilder()
    one = builder.add(mode=0o40755)
    builder.link(0, b"a", one)
    builder.link(one, b"up", 0)
    with pytest.raises(TreeError, match="second name"):
        builder.build()


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": 0o644},
        {"mode": 0o110000},
        {"mode": 0o100644, "size": 5, "hash": b"short"},
        {"mode": 0o120777},
        {"mode": 0o120777, "target": b"x" * 4096},
        {"mode": 0o120777, "target": b"a\0b"},
        {"mode": 0o100644, "xattrs": {b"": b""}},
        {"mode": 0o100644, "xattrs": {b"x" * 256: b""}},
        {"mode": 0o100644, "xattrs": {b"a": b"x" * 65537}},
        {"mode": 0o100644, "xattrs": {b"a%d" % i: b"x" * 65536 for i in range(17)}},
        {"mode": 0o100644, "uid": -1},
        {"mode": 0o100644, "uid": 1 << 32},
    ],
)
def test_inodes_that_are_none(arguments: dict[str, object]) -> None:
    with pytest.raises(TreeError) as caught:
        FileSystemBuilder().add(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_rise() -> None:
    builder = FileSystemBuilder()
    builder.add(mode=0o100644, number=7)
    with pytest.raises(TreeError, match="behind"):
        builder.add(mode=0o100644, number=7)


def test_only_directories_hold_names() -> None:
    builder = FileSystemBuilder()
    file = builder.add(mode=0o100644)
    with pytest.raises(TreeError, match="not a directory"):
        builder.link(file, b"x", 0)


def inode(mode: int = 0o100644, **parts: int) -> bytes:
    names = ["number", "size", "mtime_sec", "mtime_nsec", "mode", "uid", "gid", "rdev"]
    names += ["data_off", "data_len", "first_entry", "entry_count", "xattr_off", "xattr_len"]
    names += ["flags", "reserved"]
    values = dict.fromkeys(names, 0) | {"mode": mode} | parts
    return INODE.pack(*(values[name] for name in names), b"")


ROOT = inode(0o40755, entry_count=1)


@pytest.mark.parametrize(
    ("inodes", "entries", "blob"),
    [
        (b"", b"", b""),
        (inode(0o100644), b"", b""),
        (inode(0o40755, first_entry=1, entry_count=1), ENTRY.pack(0, 0, 1), b"a"),
        (inode(0o40755, entry_count=2), ENTRY.pack(0, 0, 1), b"a"),
        (inode(0o40755, first_entry=0xFFFFFFFF, entry_count=2), b"", b""),
        (ROOT + inode(), ENTRY.pack(2, 0, 1), b"a"),
        (ROOT + inode(), ENTRY.pack(1, 0, 2), b"a"),
        (ROOT + inode(), ENTRY.pack(1, 0xFFFFFFFF, 0xFFFFFFFF), b"a"),
        (ROOT + inode(data_off=1, data_len=1), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(xattr_off=0xFFFFFFFF, xattr_len=0xFFFFFFFF), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(0o120777), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(0o100644, entry_count=1), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(mtime_nsec=1_000_000_000), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(mtime_nsec=-1), ENTRY.pack(1, 0, 1), b"a"),
        (ROOT + inode(0), ENTRY.pack(1, 0, 1), b"a"),
    ],
)
def test_tables_that_do_not_hold_together(inodes: bytes, entries: bytes, blob: bytes) -> None:
    with pytest.raises(TreeError):
        tree_module.finish(inodes, entries, blob)


def test_tables_of_odd_lengths() -> None:
    with pytest.raises(ValueError, match="table of inodes"):
        tree_module.finish(ROOT + b"x", b"", b"")
    with pytest.raises(ValueError, match="table of entries"):
        tree_module.finish(ROOT, b"x", b"")
    with pytest.raises(ValueError, match="table of inodes"):
        tree_module.usage(b"x")


def test_the_records_have_the_sizes_of_the_c_structures() -> None:
    assert INODE.size == 144
    assert ENTRY.size == 12
    assert struct.calcsize("<QQqiIIIQ") == 48
