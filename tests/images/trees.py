"""Trees for tests: made on disk, described, and a sink that keeps contents in memory."""

import hashlib
import os
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

from smallstack.images.build import chunks
from smallstack.images.decompress import Readable
from smallstack.proto.filesystem import FileSystem


class MemorySink:
    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}

    def add(self, file: Readable, size: int) -> bytes:
        data = b"".join(chunks(file, size))
        digest = hashlib.sha512(data).digest()
        self.contents[digest] = data
        return digest


def describe(tree: FileSystem) -> dict[bytes, tuple[Any, ...]]:
    """Everything a tree says of each path; hard links as the set of paths that share an inode."""
    names = defaultdict(list)
    for path, index in tree.walk():
        names[index].append(path)
    found = {}
    for index, paths in names.items():
        inode = tree.inode(index)
        for path in paths:
            found[path] = (
                oct(inode.mode),
                inode.uid,
                inode.gid,
                inode.size,
                inode.hash,
                inode.target,
                inode.rdev,
                inode.mtime_ns,
                tuple(sorted(inode.xattrs.items())),
                tuple(sorted(paths)),
            )
    return found


def make_tree(root: Path, *, special: bool = False) -> None:
    """One of everything that an image can hold; ``special`` needs root."""
    root.mkdir()
    (root / "etc").mkdir(mode=0o755)
    (root / "etc/passwd").write_bytes(b"root:x:0:0::/:/bin/sh\n")
    (root / "etc/empty").write_bytes(b"")
    (root / "bin").mkdir()
    (root / "bin/tool").write_bytes(b"#!/bin/sh\n" * 300)
    (root / "bin/tool").chmod(0o4755)
    os.link(root / "bin/tool", root / "bin/alias")
    (root / "bin/sh").symlink_to("tool")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "large").write_bytes(os.urandom(3 << 20))
    (root / "copy").write_bytes((root / "etc/passwd").read_bytes())
    (root / os.fsdecode(b"na\xffme\n")).write_bytes(b"an odd name")
    os.mkfifo(root / "fifo", 0o640)
    (root / "long").symlink_to("x/" * 150)
    deep = root
    for _ in range(20):
        deep /= "d" * 20
        deep.mkdir()
    (deep / "leaf").write_bytes(b"leaf")
    os.setxattr(root / "etc/passwd", "user.note", b"a\0value\n")
    os.setxattr(root / "etc", "user.note", b"of a directory")
    if special:
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
        os.mknod(root / "disk", 0o60660, os.makedev(259, 70000))
        (root / "null").chmod(0o666)
        os.chown(root / "etc/passwd", 70000, 12)
        os.chown(root / "bin/sh", 5, 6, follow_symlinks=False)
        os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
        os.setxattr(root / "bin/sh", "trusted.note", b"of a link", follow_symlinks=False)
        os.setxattr(root / "tmp", "system.posix_acl_default", ACL)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(root, ns=(0, 1_600_000_000_000_000_001))


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 0200050071110100 04000500ffffffff 10000500ffffffff 20000500ffffffff"
)


def add_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        directory = os.open(path.parent, os.O_PATH)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
