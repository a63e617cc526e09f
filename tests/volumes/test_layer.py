"""Layers: the brick with a few blocks changed, checked by qemu-img, e2fsck and the kernel."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes.brick import Brick
from smallstack.volumes.errors import LayerError, LayerFullError, LayerPathError
from smallstack.volumes.layer import (
    LayerInfo,
    Way,
    create_layer,
    fstab_line,
    fstab_with_root,
    root_label,
)
from smallstack.volumes.partition import PARTITION_OFFSET
from tests.volumes.conftest import MIB, Write
from tests.volumes.disks import e2fsck, mounted, rsync_differences, run
from tests.volumes.trees import Objects

LABEL = "rootfs@c6336402"
FSTAB = b"# an fstab\n/dev/sdb1 /srv ext4 defaults 0 2\n"
Make = Callable[..., Brick]


def sample_tree(objects: Objects, extra: int = 0) -> FileSystem:
    """What the paths of the tests go through: links of all kinds, and a directory of many names."""
    builder = FileSystemBuilder(mtime_ns=10**18)

    def directory(parent: int, name: bytes, **more: object) -> int:
        index = builder.add(mode=0o40755, mtime_ns=10**18, **more)  # type: ignore[arg-type]
        builder.link(parent, name, index)
        return index

    def file(parent: int, name: bytes, content: bytes, **more: object) -> int:
        index = builder.add(
            mode=0o100640,
            uid=7,
            size=len(content),
            hash=objects.add(content),
            mtime_ns=10**18,
            **more,  # type: ignore[arg-type]
        )
        builder.link(parent, name, index)
        return index

    def link(parent: int, name: bytes, target: bytes) -> None:
        builder.link(parent, name, builder.add(mode=0o120777, target=target, mtime_ns=10**18))

    etc = directory(0, b"etc", xattrs={b"trusted.big": b"v" * 500})
    file(etc, b"fstab", FSTAB, xattrs={b"user.note": b"n" * 300})
    shared = file(etc, b"one", b"two names" * 1000)
    builder.link(etc, b"two", shared)
    file(etc, b"large", b"L" * 700_000)
    var = directory(0, b"var")
    directory(var, b"lib")
    run_directory = directory(0, b"run")
    link(var, b"run", b"/run")
    link(var, b"relative", b"../etc/../run")
    link(var, b"loop", b"loop")
    link(etc, b"resolv.conf", b"../run/resolv.conf")
    link(var, b"long", b"./" * 1000 + b"lib")
    file(run_directory, b"plain", b"x")
    many = directory(0, b"many")
    for number in range(3000):
        builder.link(many, b"a name of some length, number %d" % number, shared)
    full = directory(0, b"full")
    for number in range(125):  # 32 bytes each: the one block is nearly full
        builder.link(full, b"n" * 20 + b"%04d" % number, shared)
    for number in range(extra):
        file(0, b"extra%d" % number, b"%d" % number * 3000)
    return builder.build()


@pytest.fixture
def make(objects: Objects, write: Write) -> Make:
    def make_it(size: int = 64 * MIB, extra: int = 0) -> Brick:
        path, _ = write(sample_tree(objects, extra), size)
        return Brick(path, size, "key")

    return make_it


@pytest.fixture
def brick(make: Make) -> Brick:
    return make()


def guest_view(info: LayerInfo, tmp_path: Path) -> Path:
    """The raw disk that a guest would see, as qemu-img makes it of the layer."""
    if info.format == "raw":
        return info.path
    assert "No errors were found" in run("qemu-img", "check", info.path)
    shown = run("qemu-img", "info", info.path)
    assert "backing file format: raw" in shown
    assert f"virtual size: {info.virtual_size / MIB:.4g} MiB" in shown or "GiB" in shown
    raw = tmp_path / "guest"
    run("qemu-img", "convert", "-O", "raw", info.path, raw)
    return raw


def check(info: LayerInfo, tmp_path: Path) -> Iterator[Path]:
    raw = guest_view(info, tmp_path)
    assert raw.stat().st_size == info.virtual_size
    e2fsck(raw)
    with mounted(raw, tmp_path / "mnt") as root:
        yield root


def changes(brick: Brick, info: LayerInfo, tmp_path: Path) -> list[str]:
    """What rsync sees in the layer that was otherwise in the brick."""
    for root in check(info, tmp_path):
        with mounted(brick.path, tmp_path / "brick") as old:
            command = ("rsync", "-aHAXnc", "--delete", "--itemize-changes")
            return run(*command, f"{root}/", f"{old}/").splitlines()
    raise AssertionError


@pytest.mark.root
@pytest.mark.parametrize("way", [Way.QCOW2, Way.COPY, Way.AUTO])
def test_what_an_agent_puts_into_a_layer(brick: Brick, tmp_path: Path, way: Way) -> None:
    before = brick.path.read_bytes()
    mine = uuid.uuid4()
    info = create_layer(
        brick,
        tmp_path / "layer",
        label=LABEL,
        uuid=mine.bytes,
        directories=["/srv/data", "srv/../opt//x/", "/etc"],
        files={"/etc/hostname": b"vm1\n", "root/.ssh/authorized_keys": b"ssh-ed25519 AAAA\n"},
        fstab=fstab_line(LABEL),
        initial_image="debian/2026-01-01",
        way=way,
    )
    assert info.uuid == mine.bytes
    assert info.format == ("raw" if way is Way.COPY else "qcow2")
    assert info.backing == (None if way is Way.COPY else brick.path)
    for root in check(info, tmp_path):
        assert (root / "etc/fstab").read_bytes() == fstab_line(LABEL) + FSTAB
        assert (root / "var/lib/initial-image").read_bytes() == b"debian/2026-01-01\n"
        assert (root / "root/.ssh/authorized_keys").read_bytes() == b"ssh-ed25519 AAAA\n"
        for name in ("srv/data", "opt/x", "root/.ssh"):
            st_ = (root / name).stat()
            assert (st_.st_mode, st_.st_uid, st_.st_gid) == (0o40755, 0, 0)
        for name in ("etc/hostname", "etc/fstab", "var/lib/initial-image"):
            st_ = (root / name).stat()
            assert (st_.st_mode, st_.st_uid, st_.st_nlink) == (0o100644, 0, 1)
            assert abs(st_.st_mtime - time.time()) < 100
            assert os.listxattr(root / name) == []
    raw = guest_view(info, tmp_path)
    header = run("dumpe2fs", "-h", f"{raw}?offset={PARTITION_OFFSET}")
    assert f"Filesystem volume name:   {LABEL}\n" in header
    assert str(mine) in header
    assert sorted(changes(brick, info, tmp_path)) == sorted(
        [
            ">f+++++++++ etc/hostname",
            ">fcstpo...x etc/fstab",
            "cd+++++++++ opt/",
            "cd+++++++++ opt/x/",
            "cd+++++++++ root/",
            "cd+++++++++ root/.ssh/",
            ">f+++++++++ root/.ssh/authorized_keys",
            "cd+++++++++ srv/",
            "cd+++++++++ srv/data/",
            ">f+++++++++ var/lib/initial-image",
        ]
    )
    assert brick.path.read_bytes() == before


@pytest.mark.root
def test_an_identity_alone_changes_no_file(brick: Brick, tmp_path: Path) -> None:
    one = create_layer(brick, tmp_path / "one", label=LABEL)
    other = create_layer(brick, tmp_path / "other", label=LABEL)
    assert one.uuid != other.uuid
    for root in check(one, tmp_path):
        with mounted(brick.path, tmp_path / "brick") as old:
            assert rsync_differences(root, old) == ""


@pytest.mark.root
def test_existing_files_are_replaced_and_links_followed(brick: Brick, tmp_path: Path) -> None:
    files = {
        "/etc/one": b"alone now",
        "/etc/large": b"small now",
        "/run/plain": b"",
        "/var/run/by-link": b"in run",
        "/var/relative/deep/er": b"in run too",
        "/etc/resolv.conf": b"nameserver 198.51.100.1\n",
        "/var/long/file": b"in var/lib",
        "/" + "/".join(["d" * 200] * 15) + "/leaf": b"deep",
    }
    info = create_layer(brick, tmp_path / "layer", label=LABEL, files=files)
    for root in check(info, tmp_path):
        assert (root / "etc/one").read_bytes() == b"alone now"
        assert (root / "etc/two").read_bytes() == b"two names" * 1000
        assert (root / "etc/two").stat().st_nlink == 3126
        assert (root / "etc/large").read_bytes() == b"small now"
        assert (root / "run/plain").stat().st_size == 0
        assert (root / "run/by-link").read_bytes() == b"in run"
        assert (root / "run/deep/er").read_bytes() == b"in run too"
        assert (root / "etc/resolv.conf").is_symlink()
        assert (root / "run/resolv.conf").read_bytes() == b"nameserver 198.51.100.1\n"
        assert (root / "var/lib/file").read_bytes() == b"in var/lib"
        assert (root / "/".join(["d" * 200] * 15) / "leaf").read_bytes() == b"deep"


@pytest.mark.root
def test_large_files_and_large_directories(make: Make, tmp_path: Path) -> None:
    brick = make(128 * MIB)
    files = {f"/many/new name {n}": b"%d" % n for n in range(400)}
    files |= {f"/full/{'z' * 30}{n}": b"" for n in range(300)}
    files |= {f"/fresh/file {n} of many with a long name": b"x" for n in range(500)}
    files["/blob"] = os.urandom(20 * MIB + 1)
    info = create_layer(brick, tmp_path / "layer", label=LABEL, files=files)
    for root in check(info, tmp_path):
        for name, content in files.items():
            assert (root / name[1:]).read_bytes() == content
        assert len(list((root / "many").iterdir())) == 3400
        assert len(list((root / "full").iterdir())) == 425
        assert (root / "many/a name of some length, number 2999").stat().st_size == 9000


def inside(root: Path, name: str) -> Path:
    """Where a path leads in the root: from outside, /var/run would be the host's /run."""
    return root / (name.removeprefix("var/") if name.startswith("var/run/") else name)


NAME = st.sampled_from(["etc", "var", "run", "many", "full", "new", "a", "b", "fstab", "large"])
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)


@pytest.mark.root
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    directories=st.lists(PATH, max_size=5),
    files=st.dictionaries(PATH, st.sampled_from([0, 1, 4096, 4097, 100_000]), max_size=8),
)
def test_any_overlay(
    brick: Brick, tmp_path: Path, directories: list[str], files: dict[str, int]
) -> None:
    path = tmp_path / "layer"
    path.unlink(missing_ok=True)
    content = {name: bytes([n % 251]) * size for n, (name, size) in enumerate(files.items())}
    try:
        info = create_layer(brick, path, label=LABEL, directories=directories, files=content)
    except LayerPathError:
        assert not path.exists()
        return
    for root in check(info, tmp_path):
        for name in directories:
            assert inside(root, name).is_dir()
        # two names of one file: the later one counts
        for path, data in {inside(root, name): data for name, data in content.items()}.items():
            assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/fstab/x", "not a directory"),
        ("/etc", "not a regular file"),
        ("/", "not a regular file"),
        ("/../..", "not a regular file"),
        ("/var/loop", "too many symlinks"),
        ("/var/loop/x", "too many symlinks"),
        ("/" + "x" * 256, "too long"),
        ("/" + "x/" * 3000, "too long"),
        ("/a\0b", "NUL"),
    ],
)
def test_paths_that_cannot_be(brick: Brick, tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(LayerPathError, match=text):
        create_layer(brick, tmp_path / "layer", label=LABEL, files={path: b"x"})
    assert not (tmp_path / "layer").exists()
    if path not in {"/etc", "/", "/../.."}:
        with pytest.raises(LayerPathError):
            create_layer(brick, tmp_path / "layer", label=LABEL, directories=[path])


@pytest.mark.root
def test_without_room(make: Make, tmp_path: Path) -> None:
    brick = make()
    with pytest.raises(LayerFullError, match="no free block"):
        create_layer(brick, tmp_path / "layer", label=LABEL, files={"/x": bytes(60 * MIB)})
    files = {f"/f{n}": b"" for n in range(8200)}
    with pytest.raises(LayerFullError, match="no free inode"):
        create_layer(brick, tmp_path / "layer", label=LABEL, files=files)
    assert not (tmp_path / "layer").exists()
    # the last block can still be used
    low, high = 0, 60 * 256
    while high - low > 1:
        middle = (low + high) // 2
        try:
            info = create_layer(
                brick, tmp_path / "layer", label=LABEL, files={"/x": b"x" * middle * 4096}
            )
        except LayerFullError:
            high = middle
        else:
            low = middle
            info.path.unlink()
    info = create_layer(brick, tmp_path / "layer", label=LABEL, files={"/x": b"x" * low * 4096})
    for _ in check(info, tmp_path):
        assert os.statvfs(tmp_path / "mnt").f_bfree == 0


@pytest.mark.root
def test_groups_without_bitmaps_yet(make: Make, tmp_path: Path) -> None:
    """Files that go on into groups whose bitmaps and inode tables were never written."""
    brick = make(1024 * MIB)
    files = {"/blob": os.urandom(200 * MIB)}
    info = create_layer(brick, tmp_path / "layer", label=LABEL, files=files, way=Way.COPY)
    for root in check(info, tmp_path):
        assert (root / "blob").read_bytes() == files["/blob"]


@pytest.mark.root
def test_inodes_of_groups_without_tables_yet(
    objects: Objects, write: Write, tmp_path: Path
) -> None:
    builder = FileSystemBuilder()
    for number in range(15500):
        builder.link(0, b"%d" % number, builder.add(mode=0o100644))
    disk, _ = write(builder.build(), 256 * MIB)
    brick = Brick(disk, 256 * MIB, "key")
    files = {f"/new/{n}": b"" for n in range(2000)}
    info = create_layer(brick, tmp_path / "layer", label=LABEL, files=files)
    for root in check(info, tmp_path):
        assert len(list((root / "new").iterdir())) == 2000


def test_what_is_no_brick_of_ours(brick: Brick, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="No such file"):
        create_layer(Brick(tmp_path / "none", MIB, ""), tmp_path / "layer", label=LABEL)
    other = tmp_path / "other"
    with other.open("wb") as file:
        file.truncate(brick.size)
    with pytest.raises(LayerError, match="not one of ours"):
        create_layer(Brick(other, brick.size, ""), tmp_path / "layer", label=LABEL)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={PARTITION_OFFSET}", other, "60m")
    with pytest.raises(LayerError, match="not one of ours"):
        create_layer(Brick(other, brick.size, ""), tmp_path / "layer", label=LABEL)
    for at in (1024 + 4, 4096 + 20):  # the super block, a group descriptor
        damaged = bytearray(brick.path.read_bytes())
        damaged[PARTITION_OFFSET + at] ^= 1
        other.write_bytes(damaged)
        with pytest.raises(LayerError, match="damaged"):
            create_layer(
                Brick(other, brick.size, ""), tmp_path / "layer", label=LABEL, directories=["/x"]
            )
    assert not (tmp_path / "layer").exists()


def test_a_layer_does_not_replace_a_file(brick: Brick, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(b"mine")
    with pytest.raises(LayerError, match="File exists"):
        create_layer(brick, tmp_path / "layer", label=LABEL)
    assert (tmp_path / "layer").read_bytes() == b"mine"
    with pytest.raises(LayerError):
        create_layer(brick, tmp_path / "new", label=LABEL, way=Way.REFLINK)
    assert not (tmp_path / "new").exists()


@pytest.mark.root
def test_reflinks_where_the_file_system_can(make: Make, tmp_path: Path) -> None:
    image, at = tmp_path / "xfs.img", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    at.mkdir()
    run("mount", "-o", "loop", image, at)
    try:
        brick = make()
        shared = Brick(at / "brick", brick.size, "key")
        run("cp", "--sparse=always", brick.path, shared.path)
        run("sync", "-f", at)
        info = create_layer(shared, at / "layer", label=LABEL, fstab=fstab_line(LABEL))
        assert (info.format, info.backing) == ("raw", None)
        for root in check(info, tmp_path):
            assert (root / "etc/fstab").read_bytes() == fstab_line(LABEL) + FSTAB
    finally:
        run("umount", at)


def test_label_and_fstab() -> None:
    assert root_label(bytes([198, 51, 100, 2])) == LABEL
    assert len(LABEL) == 15
    assert fstab_line(LABEL) == b"LABEL=rootfs@c6336402  /          ext4  defaults   0 1\n"
    assert fstab_with_root(LABEL, b"old\n") == fstab_line(LABEL) + b"old\n"
