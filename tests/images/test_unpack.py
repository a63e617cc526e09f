import os
import subprocess
from pathlib import Path

import pytest

from smallstack.images.build import StoreSink, from_directory
from smallstack.images.errors import UnpackError
from smallstack.images.unpack import Unpacking
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from tests.images.trees import MemorySink, describe, make_tree


def unpack(source: Path, target: Path) -> list[str]:
    tree = from_directory(source, MemorySink())
    with Unpacking(tree, target) as unpacking:
        from_directory(source, StoreSink(unpacking.store))
        return unpacking.finish().warnings()


@pytest.mark.root
def test_what_was_built_comes_back(tmp_path: Path) -> None:
    make_tree(tmp_path / "root", special=True)
    assert unpack(tmp_path / "root", tmp_path / "out") == []
    before = describe(from_directory(tmp_path / "root", MemorySink()))
    assert describe(from_directory(tmp_path / "out", MemorySink())) == before
    done = subprocess.run(
        ["rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{tmp_path}/root/",
         f"{tmp_path}/out/"],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]


def test_an_empty_directory_is_replaced_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"content")
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "root", tmp_path / "out")
    assert (tmp_path / "out/file").read_bytes() == b"content"
    for target in ("out", "root/file"):
        with pytest.raises(UnpackError, match="there is something already"):
            unpack(tmp_path / "root", tmp_path / target)
    (tmp_path / "new~").mkdir()
    with pytest.raises(UnpackError, match="left from an earlier attempt"):
        unpack(tmp_path / "root", tmp_path / "new")
    with pytest.raises(UnpackError, match="No such file"):
        unpack(tmp_path / "root", tmp_path / "none/new")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    make_tree(tmp_path / "root")
    (tmp_path / "root/tmp").chmod(0o500)
    tree = from_directory(tmp_path / "root", MemorySink())
    with pytest.raises(UnpackError, match="No such file"), Unpacking(tree, tmp_path / "out") as u:
        u.finish()
    with pytest.raises(ZeroDivisionError), Unpacking(tree, tmp_path / "out") as u:
        from_directory(tmp_path / "root", StoreSink(u.store))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def special_tree() -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=1, mode=0o40700)
    device = builder.add(mode=0o20666, rdev=os.makedev(1, 3), uid=7)
    builder.link(0, b"null", device)
    builder.link(0, b"zero", device)
    file = builder.add(mode=0o100644, uid=12345, xattrs={b"trusted.x": b"y"})
    builder.link(0, b"file", file)
    made = builder.add(mode=0o100644, target=b"/generator", computed=True)
    builder.link(0, b"made", made)
    closed = builder.add(mode=0o40000, mtime_ns=5)
    builder.link(0, b"closed", closed)
    builder.link(closed, b"in", builder.add(mode=0o40700))
    return builder.build()


@pytest.mark.root
def test_without_root_what_cannot_be_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(0o711)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with Unpacking(special_tree(), tmp_path / "out") as unpacking:
                warnings = unpacking.finish().warnings()
            assert warnings == [
                "5 inode(s) belong to you instead: only root can give away",
                "2 device(s) left out: only root can make them",
                "1 extended attribute(s) left out: not permitted here",
                "1 computed file(s) left empty",
            ], warnings
            with pytest.raises(ZeroDivisionError), Unpacking(special_tree(), tmp_path / "no") as u:
                u._make()
                raise ZeroDivisionError
            assert not (tmp_path / "no~").exists()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["closed", "file", "made"]


def test_a_tree_with_our_own_name_in_it(tmp_path: Path) -> None:
    builder = FileSystemBuilder()
    builder.link(0, b".objects", builder.add(mode=0o100644))
    with (
        pytest.raises(UnpackError, match=r"/\.objects"),
        Unpacking(builder.build(), tmp_path / "out") as unpacking,
    ):
        unpacking.finish()
    assert list(tmp_path.iterdir()) == []
