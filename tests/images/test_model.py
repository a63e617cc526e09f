import hashlib
import os

import pytest

from smallstack.images.computed import computed_files, repeated_computed_file
from smallstack.images.errors import ImageError
from smallstack.images.inodes import find_inodes
from smallstack.images.model import check_required_paths, summarise
from smallstack.proto.filesystem import (
    ComputedRegularInode,
    DirectoryInode,
    FileSystem,
    FileSystemBuilder,
    RegularInode,
    SpecialInode,
    SymlinkInode,
)
from smallstack.proto.image import Filter, Image

CONTENT = b"content"
DIGEST = hashlib.sha512(CONTENT).digest()


def tree(mtime: int | None = 5, *, xattrs: bool = True, names: int = 1) -> FileSystem:
    builder = FileSystemBuilder(mtime_ns=mtime)
    top = builder.add(mode=0o40755, mtime_ns=mtime, uid=1)
    builder.link(0, b"dir", top)
    file = builder.add(
        mode=0o100644,
        size=7,
        hash=DIGEST,
        mtime_ns=1_500_000_000,
        gid=2,
        xattrs={b"user.a": b"b"} if xattrs else None,
    )
    builder.link(0, b"file", file)
    builder.link(top, b"again", file)
    builder.link(0, b"link", builder.add(mode=0o120777, target=b"file", mtime_ns=mtime))
    builder.link(0, b"null", builder.add(mode=0o20666, rdev=os.makedev(1, 3), mtime_ns=9))
    made = builder.add(mode=0o100600, target=b"gen", computed=True)
    for number in range(names):
        builder.link(top, b"made%d" % number, made)
    return builder.build()


def test_summary() -> None:
    found = summarise(tree())
    assert (found.directories, found.files, found.symlinks, found.specials) == (2, 1, 1, 1)
    assert (found.computed, found.with_xattrs, found.untimed) == (1, 1, 0)
    assert (found.data_bytes, found.objects, found.object_bytes) == (7, 1, 7)
    assert found.notes == []


def test_what_an_image_lacks() -> None:
    assert summarise(tree(xattrs=False)).notes == ["absent: extended attributes (no inode has any)"]
    lost = summarise(tree(None, xattrs=False)).notes
    assert lost == [
        "absent: times of directories and symlinks, and extended attributes if there were any "
        "(it was made by, or went through, a server that drops them)"
    ]
    assert "extended" not in summarise(tree(None)).notes[0]
    builder = FileSystemBuilder(mtime_ns=1)
    builder.link(0, b"d", builder.add(mode=0o40755))
    assert summarise(builder.build()).notes == ["absent: times of 1 directories and symlinks"]


def test_required_paths() -> None:
    check_required_paths("x", Image(file_system=tree()))
    with pytest.raises(ImageError, match="/etc is not in it: leave the filter out"):
        check_required_paths("x", Image(file_system=tree(), filter=Filter()))
    builder = FileSystemBuilder()
    etc, usr = builder.add(mode=0o40755), builder.add(mode=0o40755)
    builder.link(0, b"etc", etc)
    builder.link(0, b"usr", usr)
    builder.link(usr, b"bin", builder.add(mode=0o40755))
    builder.link(etc, b"passwd", builder.add(mode=0o100644))
    check_required_paths("x", Image(file_system=builder.build(), filter=Filter()))


def test_computed_files() -> None:
    found = computed_files(tree())
    assert [(one.filename, one.source) for one in found] == [("/dir/made0", "gen")]
    assert repeated_computed_file(tree()) == ""
    assert repeated_computed_file(tree(names=2)) == "/dir/made1"
    assert computed_files(FileSystemBuilder().build()) == []


def test_single_inodes() -> None:
    paths = ["/file", "/dir", "/dir/again", "/link", "/null", "/dir/made0", "/none", "/"]
    numbers, inodes, links = find_inodes(tree(), paths)
    assert set(numbers) == set(paths) - {"/none", "/"}
    assert numbers["/file"] == numbers["/dir/again"]
    assert links[numbers["/file"]] == 2
    assert links[numbers["/dir"]] == 1
    file = inodes[numbers["/file"]]
    assert isinstance(file, RegularInode)
    assert (file.size, file.gid, file.mtime_seconds, file.mtime_nano_seconds) == (
        7,
        2,
        1,
        500_000_000,
    )
    assert file.hash == DIGEST
    assert file.xattrs == {"user.a": b"b"}
    directory = inodes[numbers["/dir"]]
    assert isinstance(directory, DirectoryInode)
    assert [entry.name for entry in directory.entry_list] == ["again", "made0"]
    assert directory.entry_list[0].inode_number == numbers["/file"]
    link, null = inodes[numbers["/link"]], inodes[numbers["/null"]]
    assert isinstance(link, SymlinkInode)
    assert link.symlink == "file"
    assert isinstance(null, SpecialInode)
    assert null.rdev == os.makedev(1, 3)
    made = inodes[numbers["/dir/made0"]]
    assert isinstance(made, ComputedRegularInode)
    assert made.source == "gen"
