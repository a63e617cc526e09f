"""What the kernel and e2fsprogs make of a disk: the references that the tests compare with."""

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallstack.proto.filesystem import FileSystem
from smallstack.volumes.partition import PARTITION_OFFSET
from tests.volumes.trees import xattrs_of


def run(*command: object, check: bool = True) -> str:
    """A command's output; its error output is in the exception when it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    text = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{text}\n{done.stderr.decode()}")
    return text


def e2fsck(disk: Path, offset: int = PARTITION_OFFSET) -> str:
    """`e2fsck -fn` must find nothing at all."""
    target = f"{disk}?offset={offset}" if offset else disk
    text = run("e2fsck", "-fn", target)
    assert "Pass 5" in text, text
    assert "Fix" not in text, text
    return text


@contextmanager
def mounted(disk: Path, at: Path, offset: int = PARTITION_OFFSET) -> Iterator[Path]:
    """The root partition of a disk, read-only."""
    at.mkdir(exist_ok=True)
    run("mount", "-o", f"ro,loop,offset={offset}", disk, at)
    try:
        yield at
    finally:
        run("umount", at)


def rsync_differences(one: Path, other: Path) -> str:
    """What rsync would change to make each like the other: nothing, if they are equal."""
    command = ("rsync", "-aHAXnc", "--delete", "--itemize-changes")
    return run(*command, f"{one}/", f"{other}/") + run(*command, f"{other}/", f"{one}/")


def differences(fs: FileSystem, root: Path) -> list[str]:
    """Each way in which the tree under ``root`` is not what ``fs`` says, path by path."""
    found: list[str] = []
    numbers: dict[int, int] = {}
    names: dict[bytes, set[bytes]] = {}
    top = os.fsencode(root)
    for path, index in fs.walk():
        inode = fs.inode(index)
        place = top + path
        st = os.lstat(place)
        parent, _, name = path.rpartition(b"/")
        if name:
            names.setdefault(parent or b"/", set()).add(name)
        regular = stat.S_ISREG(inode.mode)
        facts = {
            "mode": (st.st_mode, inode.mode),
            "uid": (st.st_uid, inode.uid),
            "gid": (st.st_gid, inode.gid),
            "number": (numbers.setdefault(index, st.st_ino), st.st_ino),
            "xattrs": (xattrs_of(place), inode.xattrs),
        }
        if inode.mtime_ns is not None:
            facts["mtime"] = (st.st_mtime_ns, inode.mtime_ns)
        if regular:
            facts["size"] = (st.st_size, inode.size)
            content = hashlib.sha512()
            with open(place, "rb") as file:  # noqa: PTH123 - bytes
                while piece := file.read(1 << 20):
                    content.update(piece)
            facts["content"] = (content.digest() if st.st_size else b"", inode.hash)
        if stat.S_ISLNK(inode.mode):
            facts["target"] = (os.readlink(place), inode.target)  # noqa: PTH115 - bytes
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            facts["rdev"] = (st.st_rdev, inode.rdev)
        found += [f"{path!r}: {what}: {a!r} != {b!r}" for what, (a, b) in facts.items() if a != b]
    for path, index in fs.walk():
        if stat.S_ISDIR(fs.inode(index).mode):
            there = set(os.listdir(top + path))  # noqa: PTH208 - bytes
            if there != names.get(path.rstrip(b"/") or b"/", set()):
                found.append(f"{path!r}: names differ")
    if len(set(numbers.values())) != len(numbers):
        found.append("two inodes became one")
    return found
