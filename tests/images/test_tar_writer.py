"""A tree as an archive: read again it is the same tree, by our reader and by GNU tar."""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from smallstack.images.build import Report, StoreSink, from_directory
from smallstack.images.diff import Kind, differences, totals
from smallstack.images.tar import from_tar
from smallstack.images.tar_writer import END, tar_members
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from tests.proto.strategies import trees


def archive(tree: FileSystem, content: dict[bytes, bytes]) -> bytes:
    parts = []
    for member in tar_members(tree, []):
        parts.append(member.header)
        if member.hash:
            parts += [content[member.hash], member.padding]
    return b"".join(parts) + END


def small_tree(store: ObjectStore) -> tuple[FileSystem, dict[bytes, bytes]]:
    """One of every kind, with names, times and attributes that need an extended header."""
    data = {b"short": b"some content", b"long": bytes(range(256)) * 40}
    hashes = {name: bytes(store.put(value)) for name, value in data.items()}
    content = {hashes[name]: value for name, value in data.items()}
    builder = FileSystemBuilder(mode=0o40750, uid=3, gid=4, mtime_ns=1_700_000_000_123_456_789)
    deep = 0
    for part in (b"a" * 200, b"\xff\xfe not text", "ünïcode".encode()):
        below = builder.add(mode=0o41777, uid=1, gid=2**31, mtime_ns=-1_500_000_000)
        builder.link(deep, part, below)
        deep = below
    for number, (name, value) in enumerate(data.items()):
        file = builder.add(
            mode=0o104755,
            uid=number,
            size=len(value),
            hash=hashes[name],
            mtime_ns=10**18 + number,
            xattrs={
                b"security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
                b"user.a=b%c": b"\0\n\xff = ",
            },
        )
        builder.link(deep, name, file)
        builder.link(0, b"linked-" + name, file)
    builder.link(0, b"empty", builder.add(mode=0o100644, mtime_ns=0))
    builder.link(0, b"link", builder.add(mode=0o120777, target=b"x" * 150, mtime_ns=5))
    builder.link(0, b"fifo", builder.add(mode=0o10600, mtime_ns=0))
    builder.link(0, b"null", builder.add(mode=0o20666, rdev=os.makedev(1, 3), mtime_ns=0))
    return builder.build(), content


def differing(old: FileSystem, new: FileSystem) -> list[tuple[bytes, str, tuple[str, ...]]]:
    return [(c.path, c.kind.value, c.what) for c in differences(old, new)]


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "objects")
    tree, content = small_tree(store)
    data = archive(tree, content)
    again = from_tar(io.BytesIO(data), StoreSink(store), None, Report())
    assert differing(tree, again) == []
    assert archive(again, content) == data


@pytest.mark.root
def test_gnu_tar_and_python_read_it(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "objects")
    tree, content = small_tree(store)
    file, out = tmp_path / "a.tar", tmp_path / "out"
    file.write_bytes(archive(tree, content))
    out.mkdir()
    words = ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-p"]
    subprocess.run([*words, "-f", str(file), "-C", str(out)], check=True)
    # What GNU tar restores of a symlink's and a directory's time is all there is.
    again = from_directory(out, StoreSink(store))
    assert differing(tree, again) == []
    with tarfile.open(file) as read:
        names = read.getnames()
    assert len(names) == 1 + sum(1 for path, _ in tree.walk() if path != b"/")


@given(tree=trees())
def test_any_tree_gives_an_archive_that_is_read(tree: FileSystem) -> None:
    left_out: list[bytes] = []
    members = [member._replace(size=0) for member in tar_members(tree, left_out)]
    with_content = [path for path, index in tree.walk() if tree.inode(index).size]
    paths = [path for path, _ in tree.walk() if path not in left_out]
    assert len(members) == len(paths)
    if not with_content:  # what follows a header is as long as that says
        data = b"".join(member.header for member in members) + END
        with tarfile.open(fileobj=io.BytesIO(data)) as read:
            assert len(read.getnames()) == len(paths)


def test_sockets_are_left_out_and_told() -> None:
    builder = FileSystemBuilder()
    builder.link(0, b"socket", builder.add(mode=stat.S_IFSOCK | 0o600, mtime_ns=0))
    left_out: list[bytes] = []
    assert len(list(tar_members(builder.build(), left_out))) == 1
    assert left_out == [b"/socket"]


def test_what_differs(tmp_path: Path) -> None:
    def make(**changed: Any) -> FileSystem:
        asked: dict[str, Any] = {
            "data": b"\1" * 64,
            "mode": 0o644,
            "uid": 0,
            "target": b"here",
            "device": 1,
            "mtime": 7,
            "xattrs": {b"user.x": b"1"},
            **changed,
        }
        builder = FileSystemBuilder(mtime_ns=0)
        file = builder.add(
            mode=0o100000 | asked["mode"],
            uid=asked["uid"],
            size=10,
            hash=asked["data"],
            mtime_ns=asked["mtime"],
            xattrs=asked["xattrs"],
        )
        builder.link(0, b"file", file)
        if "second" in changed:
            builder.link(0, b"second", file)
        builder.link(0, b"link", builder.add(mode=0o120777, target=asked["target"]))
        builder.link(0, b"null", builder.add(mode=0o20666, rdev=asked["device"]))
        return builder.build()

    old = make()
    assert differing(old, make()) == []
    for changed, path, what in (
        ({"data": b"\2" * 64}, b"/file", "content"),
        ({"mode": 0o600}, b"/file", "mode"),
        ({"uid": 5}, b"/file", "owner"),
        ({"mtime": 8}, b"/file", "mtime"),
        ({"xattrs": {}}, b"/file", "xattrs"),
        ({"target": b"there"}, b"/link", "target"),
        ({"device": 2}, b"/null", "device"),
    ):
        assert differing(old, make(**changed)) == [(path, "changed", (what,))]
    assert differing(old, make(second=True)) == [
        (b"/file", "changed", ("links",)),
        (b"/second", "added", ()),
    ]


def test_a_directory_in_place_of_a_file_and_the_reverse() -> None:
    builder = FileSystemBuilder()
    directory = builder.add(mode=0o40755)
    builder.link(0, b"x", directory)
    builder.link(directory, b"below", builder.add(mode=0o100644, size=3, hash=b"\7" * 64))
    deep = builder.build()
    builder = FileSystemBuilder()
    builder.link(0, b"x", builder.add(mode=0o100644, size=3, hash=b"\7" * 64))
    builder.link(0, b"y", builder.add(mode=0o100644, size=4, hash=b"\5" * 64))
    flat = builder.build()
    assert differing(deep, flat) == [
        (b"/x", "changed", ("type",)),
        (b"/x/below", "removed", ()),
        (b"/y", "added", ()),
    ]
    assert differing(flat, deep) == [
        (b"/x", "changed", ("type",)),
        (b"/x/below", "added", ()),
        (b"/y", "removed", ()),
    ]
    changes = list(differences(deep, flat))
    assert totals(deep, flat, changes) == (1, 1, 1, 1, 4, 0, 0)
    assert [change.kind for change in changes] == [Kind.CHANGED, Kind.REMOVED, Kind.ADDED]


@given(old=trees(), new=trees())
def test_differences_are_those_of_a_table_of_paths(old: FileSystem, new: FileSystem) -> None:
    before = {path: old.inode(index) for path, index in old.walk()}
    after = {path: new.inode(index) for path, index in new.walk()}
    found = {change.path: change for change in differences(old, new)}
    assert {p for p, c in found.items() if c.kind is Kind.ADDED} == after.keys() - before.keys()
    assert {p for p, c in found.items() if c.kind is Kind.REMOVED} == before.keys() - after.keys()
    for path in before.keys() & after.keys():
        same = before[path]._replace(number=0) == after[path]._replace(number=0)
        if not same and path not in found:
            # A file without a time of its own is one of the epoch.
            assert before[path].mtime_ns == after[path].mtime_ns
        if path in found and found[path].what != ("links",):
            assert not same
