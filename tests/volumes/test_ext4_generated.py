"""Trees made up by hypothesis, written, checked by e2fsck, and read back through the kernel."""

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from tests.volumes.conftest import Write
from tests.volumes.disks import differences, e2fsck, mounted
from tests.volumes.trees import Objects

LEAST_NS = -(2**31) * 10**9
# 2310-04-04: ext4 holds 136 years more, but e2fsck takes those for dates before 1970.
MOST_NS = 0x280000000 * 10**9 - 1

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda n: n not in {b".", b".."} and b"/" not in n and b"\0" not in n
) | st.text("abcdefghij", min_size=1, max_size=4).map(str.encode)
TIMES = st.integers(LEAST_NS, MOST_NS) | st.integers(0, 2 * 10**18)
IDS = st.sampled_from([0, 1, 1000, 65535, 65536, 2**32 - 2])
MODES = st.integers(0, 0o7777)
SIZES = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 65535, 65536, 65537, 300000, 1200000])
TARGETS = st.sampled_from([1, 58, 59, 60, 61, 300, 4095]).map(lambda n: b"t" * n)
DEVICES = st.tuples(
    st.sampled_from([0, 1, 255, 256, 4095]), st.sampled_from([0, 5, 255, 256, 2**20 - 1])
).map(lambda pair: os.makedev(*pair))
SPACES = {
    stat.S_IFREG: [b"user.", b"trusted.", b"security."],
    stat.S_IFDIR: [b"user.", b"trusted."],
}


@st.composite
def xattrs(draw: st.DrawFn, kind: int) -> dict[bytes, bytes]:
    if draw(st.integers(0, 3)):
        return {}
    spaces = st.sampled_from(SPACES.get(kind, [b"trusted."]))
    names = st.text("abcXYZ.é", min_size=1, max_size=20).map(str.encode)
    values = st.binary(max_size=40) | st.just(b"v" * 300)
    pairs = st.tuples(spaces, names, values).map(lambda t: (t[0] + t[1], t[2]))
    return dict(draw(st.lists(pairs, max_size=6)))


@st.composite
def trees(draw: st.DrawFn, objects: Objects) -> FileSystem:
    builder = FileSystemBuilder(mode=0o40000 | draw(MODES), mtime_ns=draw(TIMES))
    directories: dict[int, set[bytes]] = {0: set()}
    files: list[int] = []
    source = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(0, 40))):
        parent = draw(st.sampled_from(sorted(directories)))
        name = draw(NAMES)
        if name in directories[parent]:
            continue
        directories[parent].add(name)
        kind = draw(st.sampled_from([
            stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR,
            stat.S_IFBLK, stat.S_IFIFO, 0,
        ]))  # fmt: skip
        if kind == 0:
            if files:
                builder.link(parent, name, draw(st.sampled_from(files)))
            else:
                directories[parent].discard(name)
            continue
        content = source.randbytes(draw(SIZES)) if kind == stat.S_IFREG else b""
        index = builder.add(
            mode=kind | (0o777 if kind == stat.S_IFLNK else draw(MODES)),
            uid=draw(IDS),
            gid=draw(IDS),
            mtime_ns=draw(TIMES),
            size=len(content),
            hash=objects.add(content) if content else b"",
            target=draw(TARGETS) if kind == stat.S_IFLNK else b"",
            rdev=draw(DEVICES) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
            xattrs=draw(xattrs(kind)),
        )
        builder.link(parent, name, index)
        if kind == stat.S_IFDIR:
            directories[index] = set()
        else:
            files.append(index)
    return builder.build()


@pytest.mark.root
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(data=st.data())
def test_any_tree_reads_back_as_it_was(
    data: st.DataObject, objects: Objects, write: Write, tmp_path: Path
) -> None:
    fs = data.draw(trees(objects))
    disk, layout = write(fs)
    e2fsck(disk)
    with mounted(disk, tmp_path / "mnt") as root:
        assert differences(fs, root) == []
    assert layout.inodes - layout.free_inodes == len(fs) + 9  # 1 … 10 but the root are reserved


def test_the_same_tree_gives_the_same_bytes(objects: Objects, write: Write) -> None:
    builder = FileSystemBuilder()
    for name in (b"a", b"b"):
        content = name * 5000
        index = builder.add(mode=0o100644, size=5000, hash=objects.add(content), mtime_ns=10**18)
        builder.link(0, name, index)
    fs = builder.build()
    first = write(fs)[0].read_bytes()
    assert write(fs)[0].read_bytes() == first
