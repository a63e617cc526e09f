import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallstack.control.namespace import private_mounts_command
from smallstack.images.build import Report, ShortFileError, StoreSink, chunks, from_directory
from smallstack.images.decompress import Readable
from smallstack.images.errors import SourceError
from smallstack.images.filter import PathFilter
from smallstack.objects.store import ObjectStore
from tests.images.trees import ACL, CAPABILITY, MemorySink, add_socket, describe, make_tree


def test_every_kind_of_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_tree(root)
    sink = MemorySink()
    report = Report()
    tree = from_directory(root, sink, report=report)
    found = describe(tree)
    assert found[b"/bin/tool"][-1] == (b"/bin/alias", b"/bin/tool")
    assert found[b"/bin/tool"][0] == "0o104755"
    assert found[b"/bin/sh"][5] == b"tool"
    assert found[b"/na\xffme\n"][4] == hashlib.sha512(b"an odd name").digest()
    assert found[b"/etc/empty"][3:5] == (0, b"")
    assert found[b"/etc/passwd"][4] == found[b"/copy"][4]
    assert found[b"/etc/passwd"][8] == ((b"user.note", b"a\0value\n"),)
    assert found[b"/etc"][8] == ((b"user.note", b"of a directory"),)
    assert found[b"/fifo"][0] == "0o10640"
    assert found[b"/"][7] == 1_600_000_000_000_000_001
    for path, facts in found.items():
        real = os.lstat(os.fsencode(root) + path)
        assert facts[0] == oct(real.st_mode)
        assert facts[7] == real.st_mtime_ns
    assert set(sink.contents) == set(tree.objects())
    assert report.files == tree.num_regular_inodes
    assert report.file_bytes == tree.total_data_bytes
    assert report.warnings() == []
    for index in range(len(tree)):
        names = [name for name, _ in tree.children(index)]
        assert names == sorted(names)


@pytest.mark.root
def test_owners_devices_and_attributes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_tree(root, special=True)
    found = describe(from_directory(root, MemorySink()))
    assert found[b"/null"][0] == "0o20666"
    assert found[b"/null"][6] == os.makedev(1, 3)
    assert found[b"/disk"][6] == os.makedev(259, 70000)
    assert found[b"/etc/passwd"][1:3] == (70000, 12)
    assert found[b"/bin/sh"][1:3] == (5, 6)
    assert found[b"/bin/sh"][8] == ((b"trusted.note", b"of a link"),)
    assert found[b"/bin/tool"][8] == ((b"security.capability", CAPABILITY),)
    assert found[b"/tmp"][8] == ((b"system.posix_acl_default", ACL),)


def test_into_a_store(tmp_path: Path) -> None:
    make_tree(tmp_path / "root")
    store = ObjectStore(tmp_path / "store")
    tree = from_directory(tmp_path / "root", StoreSink(store))
    assert dict(store.list()) == tree.objects()


def test_sockets_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    add_socket(tmp_path / "root/one")
    add_socket(tmp_path / "root/two")
    report = Report()
    tree = from_directory(tmp_path / "root", MemorySink(), report=report)
    assert tree.children(0) == []
    assert report.warnings() == ["2 socket(s) left out: an image cannot hold them"]


def test_the_filter_leaves_paths_out(tmp_path: Path) -> None:
    make_tree(tmp_path / "root")
    (tmp_path / "root/.subd").mkdir()
    (tmp_path / "root/etc/.subd").mkdir()
    lines = ["/bin(|/.*)$", "/d", "/etc/pass"]
    tree = from_directory(tmp_path / "root", MemorySink(), PathFilter(lines))
    left = {path for path, _ in tree.walk()}
    assert left == {
        b"/",
        b"/copy",
        b"/etc",
        b"/etc/.subd",
        b"/etc/empty",
        b"/fifo",
        b"/large",
        b"/long",
        b"/na\xffme\n",
        b"/tmp",
    }


def test_the_same_directory_gives_the_same_tree(tmp_path: Path) -> None:
    make_tree(tmp_path / "root")
    one = from_directory(tmp_path / "root", MemorySink())
    two = from_directory(str(tmp_path / "root") + "/", MemorySink())
    assert (one.inodes, one.entries, one.blob) == (two.inodes, two.entries, two.blob)


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="it is no directory"):
        from_directory(tmp_path / "file", MemorySink())
    with pytest.raises(SourceError, match="No such file or directory") as caught:
        from_directory(tmp_path / "none", MemorySink())
    assert "\n" not in str(caught.value)


class ChangingSink(MemorySink):
    """Changes the file while it is being read."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__()
        self.path = path
        self.data = data

    def add(self, file: Readable, size: int) -> bytes:
        self.path.write_bytes(self.data)
        return super().add(file, size)


@pytest.mark.parametrize("data", [b"short", b"longer than it was before", b"other"])
def test_a_file_that_changes_is_an_error(tmp_path: Path, data: bytes) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"as it was")
    os.utime(root / "file", ns=(0, 0))
    with pytest.raises(SourceError, match="it changed while it was being read"):
        from_directory(root, ChangingSink(root / "file", data))


def test_chunks_that_do_not_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file, pytest.raises(ShortFileError):
        list(chunks(file, 4))


@pytest.mark.root
def test_mounted_file_systems_stay_empty_and_loops_are_errors(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "dir/inner").mkdir(parents=True)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from smallstack.images.build import Report, from_directory\n"
        "from tests.images.trees import MemorySink\n"
        "report = Report()\n"
        "tree = from_directory(Path(sys.argv[1]), MemorySink(), report=report)\n"
        "print(sorted(path for path, _ in tree.walk()), report.warnings())\n"
    )
    script = (
        'mount -t tmpfs tmpfs "$0/proc" && touch "$0/proc/file" && '
        '"$1" -c "$2" "$0" && '
        'mount --bind "$0/dir" "$0/dir/inner" && "$1" -c "$2" "$0"'
    )
    done = subprocess.run(
        private_mounts_command(["sh", "-c", script, str(root), sys.executable, code]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("[b'/', b'/dir', b'/dir/inner', b'/proc']"), done.stderr
    assert "1 mounted file system(s) left out: /proc" in done.stdout
    assert "it is a directory in itself" in done.stderr
