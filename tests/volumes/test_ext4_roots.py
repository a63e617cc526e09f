"""Whole roots: written, `e2fsck -fn` clean, mounted by the kernel, equal by rsync both ways."""

import os
import socket
from pathlib import Path

import pytest

from bench import encoded
from bench.debian import debian_root
from smallstack.proto.filesystem import FileSystem
from smallstack.volumes.size import root_size
from tests.volumes.conftest import MIB, Write
from tests.volumes.disks import e2fsck, mounted, rsync_differences, run
from tests.volumes.trees import Objects, scan

pytestmark = pytest.mark.root


def check(source: Path, fs: FileSystem, write: Write, at: Path, size: int = 64 * MIB) -> Path:
    disk, _ = write(fs, size)
    e2fsck(disk)
    with mounted(disk, at) as root:
        assert rsync_differences(source, root) == ""
    return disk


def test_everything_a_root_can_hold(objects: Objects, write: Write, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("bin", "dev", "etc/deep/er", "big", "links", "names"):
        (root / name).mkdir(parents=True)
    tool = root / "bin/tool"
    tool.write_bytes(os.urandom(70000))
    tool.chmod(0o4755)
    run("setcap", "cap_net_raw,cap_net_bind_service+ep", tool)
    os.setxattr(tool, "user.note", b"n" * 50)
    run("setfacl", "-m", "u:1000:rwx,g:70000:r-x,o::---", root / "etc/deep")
    run("setfacl", "-d", "-m", "u:1000:rwx,g:2000:r-x,m::rwx", root / "etc/deep")
    run("setfacl", "-m", ",".join(f"u:{1000 + i}:r--" for i in range(100)), root / "etc/deep/er")
    for name, value in (("a", 0), ("b", 90), ("c", 200), ("d", 3000)):
        os.setxattr(root / "etc", f"trusted.{name}", b"v" * value)
    os.setxattr(root / "etc/deep", "user.only", b"block" * 100)
    os.link(tool, root / "links/hard")
    for length in (1, 59, 60, 61, 4095):
        (root / f"links/to{length}").symlink_to("s" * length)
        os.lchown(root / f"links/to{length}", 70000, 2**31)
    os.setxattr(root / "links/to59", "trusted.link", b"x" * 200, follow_symlinks=False)
    os.setxattr(root / "links/to4095", "trusted.link", b"x" * 20, follow_symlinks=False)
    os.mknod(root / "dev/null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "dev/big", 0o060600, os.makedev(300, 70000))
    os.mkfifo(root / "dev/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "dev/socket"))
    (root / "big/file").write_bytes(os.urandom(5 * MIB + 123))
    (root / "big/empty").touch()
    (root / "names" / ("ü" * 127)).write_text("x")
    (root / "names" / "with\nline feed").write_text("y")
    (root / os.fsdecode(b"names/not \xff utf-8")).write_text("z")
    for time, name in ((-1, "1969"), (2**31, "2038"), (2**33, "2242"), (-(2**31), "1901")):
        (root / "names" / name).touch()
        os.utime(root / "names" / name, ns=(0, time * 10**9 + 123456789))
    os.chown(root / "big/file", 4294967294, 123456)
    fs = scan(root, objects)
    (root / "dev/socket").unlink()
    os.utime(root / "dev", ns=(0, fs.inode(fs.lookup(b"/dev") or 0).mtime_ns or 0))
    disk = check(root, fs, write, tmp_path / "mnt")
    with mounted(disk, tmp_path / "mnt") as there:
        assert "cap_net_bind_service,cap_net_raw=ep" in run("getcap", there / "bin/tool")
        for name in ("etc/deep", "etc/deep/er"):
            expected = run("getfacl", "-p", root / name).replace(str(root), "")
            assert run("getfacl", "-p", there / name).replace(str(there), "") == expected


def test_the_appliance(objects: Objects, write: Write, tmp_path: Path) -> None:
    place = os.environ.get("SMALLSTACK_APPLIANCE")
    if not place:
        pytest.skip("SMALLSTACK_APPLIANCE names no appliance: run by ./dev test")
    root = Path(place) / "root"
    fs = scan(root, objects)
    check(root, fs, write, tmp_path / "mnt", root_size(fs.usage_estimate(), 16 * MIB, 24))


@pytest.mark.timeout(900)
def test_a_debian_root(objects: Objects, write: Write, tmp_path: Path) -> None:
    root = debian_root()
    fs = scan(root, objects)
    assert len(fs) >= 10_000
    size = root_size(fs.usage_estimate(), 64 * MIB, 24)
    check(root, fs, write, tmp_path / "mnt", size)
    print(f"{len(fs)} inodes, {fs.total_data_bytes} bytes in a disk of {size}")


def test_a_directory_of_100000_names(objects: Objects, write: Write, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "many").mkdir(parents=True)
    first = root / "many" / "file-000000"
    first.write_text("one inode, many names")
    for number in range(1, 100_000):
        directory = root / "many"
        # a link count ends at 65000; every 50,000 names are one inode
        if number % 50_000 == 0:
            first = directory / f"file-{number:06}"
            first.write_text("another inode")
        else:
            os.link(first, directory / f"file-{number:06}")
    (root / "dirs").mkdir()
    for number in range(3000):
        (root / "dirs" / f"a directory with quite a long name, number {number}").mkdir()
    fs = scan(root, objects)
    disk = check(root, fs, write, tmp_path / "mnt", 128 * MIB)
    stat = run("debugfs", "-R", "htree_dump /many", f"{disk}?offset=1048576", check=False)
    assert "Indirect levels: 1" in stat
    assert "Hash Version: 1" in stat
    with mounted(disk, tmp_path / "mnt") as there:
        for number in (0, 1, 4999, 50_000, 99_999):
            assert (there / "many" / f"file-{number:06}").read_bytes()
        assert not (there / "many/file-100000").exists()


def test_more_than_65000_subdirectories(objects: Objects, write: Write, tmp_path: Path) -> None:
    from smallstack.proto.filesystem import FileSystemBuilder

    builder = FileSystemBuilder()
    for number in range(65_010):
        builder.link(0, b"%d" % number, builder.add(mode=0o40755, mtime_ns=0))
    disk, _ = write(builder.build(), 1024 * MIB)
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root:
        assert root.stat().st_nlink == 1
        assert (root / "65009").stat().st_nlink == 2


@pytest.mark.timeout(600)
def test_a_million_inodes(tmp_path: Path) -> None:
    """In a process of its own that reads the encoded image: its memory is bounded."""
    encoded.save_million(tmp_path)
    peak = encoded.measure(tmp_path, encoded.MILLION_BYTES)
    print(f"{peak.inodes} inodes in {peak.seconds:.1f} s, peak memory {peak.bytes >> 20} MiB")
    assert peak.inodes == 1_000_001
    assert peak.bytes <= peak.limit
    e2fsck(tmp_path / encoded.DISK)
