"""Trees for the tests: a real directory as a packed tree over a small object store, slowly."""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder


class Objects:
    """Objects by SHA-512 in a directory, laid out as the cache does, with their BLAKE3."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.digests: dict[bytes, bytes] = {}
        self.dropped: list[bytes] = []
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: bytes) -> Path:
        text = digest.hex()
        return self.directory / text[:2] / text[2:4] / text[4:]

    def add(self, data: bytes) -> bytes:
        digest = hashlib.sha512(data).digest()
        path = self.path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.digests[digest] = blake3(data).digest()
        return digest

    def add_holes(self, size: int, spans: list[tuple[int, bytes]]) -> bytes:
        """A file of ``size`` bytes with data at some offsets and holes elsewhere."""
        temporary = self.directory / "new"
        with temporary.open("wb") as file:
            file.truncate(size)
            for at, data in spans:
                file.seek(at)
                file.write(data)
        sha, b3 = hashlib.sha512(), blake3()
        with temporary.open("rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
                b3.update(piece)
        path = self.path(sha.digest())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(path)
        self.digests[sha.digest()] = b3.digest()
        return sha.digest()

    def facts(self, digest: bytes) -> tuple[bytes, int, int]:
        return self.digests[digest], 0, 0

    async def drop(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self.dropped.append(digest)
            self.path(digest).unlink(missing_ok=True)


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    return {
        os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    }


def scan(root: Path, objects: Objects) -> FileSystem:
    """Every file, directory, link, device and fifo below ``root``; sockets are left out."""
    top = os.lstat(root)
    builder = FileSystemBuilder(
        mode=top.st_mode,
        uid=top.st_uid,
        gid=top.st_gid,
        mtime_ns=top.st_mtime_ns,
        xattrs=xattrs_of(os.fsencode(root)),
    )
    seen: dict[tuple[int, int], int] = {}

    def walk(directory: bytes, parent: int) -> None:
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - bytes
            path = directory + b"/" + name
            st = os.lstat(path)
            if stat.S_ISSOCK(st.st_mode):
                continue
            inode = seen.get((st.st_dev, st.st_ino))
            if inode is None or stat.S_ISDIR(st.st_mode):
                regular = stat.S_ISREG(st.st_mode) and st.st_size > 0
                inode = builder.add(
                    mode=st.st_mode,
                    uid=st.st_uid,
                    gid=st.st_gid,
                    mtime_ns=st.st_mtime_ns,
                    xattrs=xattrs_of(path),
                    size=st.st_size if regular else 0,
                    hash=objects.add(Path(os.fsdecode(path)).read_bytes()) if regular else b"",
                    target=os.readlink(path) if stat.S_ISLNK(st.st_mode) else b"",  # noqa: PTH115
                    rdev=st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else 0,
                )
                seen[st.st_dev, st.st_ino] = inode
            builder.link(parent, name, inode)
            if stat.S_ISDIR(st.st_mode):
                walk(path, inode)

    walk(os.fsencode(root), 0)
    return builder.build()
