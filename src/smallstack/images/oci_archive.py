"""The files of a container image: in a directory, or in a tar archive of it.

An archive is read by offsets, never unpacked: one pass over its headers tells where everything
lies. One that is compressed, or comes through a pipe, is first written to an unnamed temporary
file of bounded size. Whether a tar archive holds a container image at all is told by the names in
it: the first one that none of the known forms has makes it an archive of a root.
"""

import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from smallstack.images.decompress import (
    CHUNK,
    MAGIC_LENGTH,
    Chained,
    Readable,
    decompressed,
    form_of,
)
from smallstack.images.errors import OciError, TarError
from smallstack.images.tar import clean_path
from smallstack.images.tar_reader import TarReader

INDEX: Final = "index.json"
DOCKER_MANIFEST: Final = "manifest.json"
MAX_FILES: Final = 1 << 16
"""Members of an archive, blobs of several images among them."""
MAX_SPOOLED: Final = 64 << 30
"""Bytes of an archive that has to be written to a temporary file."""
_MAX_LINKS: Final = 8
_PEEKED: Final = 16 << 10
_UNNAMED: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_KNOWN: Final = re.compile(
    r"/("
    r"|oci-layout|index\.json|manifest\.json|repositories|config\.json"
    r"|blobs(/[a-z0-9+._-]+(/[0-9a-f]{64,128})?)?"  # an OCI layout
    r"|(sha256:)?[0-9a-f]{64}(\.json|\.tar|\.tar\.gz)?"  # docker save, and those that write like it
    r"|[0-9a-f]{64}/(VERSION|json|layer\.tar)"
    r")"
)
_MARKS: Final = frozenset({"oci-layout", INDEX, DOCKER_MANIFEST})


class Files(Protocol):
    """Where the files of a container image are."""

    def __contains__(self, name: str) -> bool: ...

    def open(self, name: str) -> AbstractContextManager[tuple[Readable, int]]:
        """A file and its size in bytes. Raises OciError when there is none."""


class DirectoryFiles:
    """The files below a directory; symlinks are no files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, name: str) -> bool:
        try:
            return stat.S_ISREG((self._path / name).lstat().st_mode)
        except OSError:
            return False

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Readable, int]]:
        """See `Files`; raises OSError too."""
        if name not in self:
            raise _missing(name)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with FileIO(os.open(self._path / name, flags)) as file:
            yield file, os.fstat(file.fileno()).st_size


class ArchiveFiles:
    """The files in an archive: what lies where, and what leads to what."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.places: dict[str, tuple[int, int]] = {}
        self.links: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Readable, int]]:
        """See `Files`."""
        place = self._place(name)
        if place is None:
            raise _missing(name)
        offset, size = place
        yield _Section(self._file, offset, size), size

    def _place(self, name: str) -> tuple[int, int] | None:
        for _ in range(_MAX_LINKS):
            if name in self.places:
                return self.places[name]
            if name not in self.links:
                return None
            name = self.links[name]
        return None


def is_layout(directory: Path) -> bool:
    """Whether a directory is a container image rather than a root."""
    files = DirectoryFiles(directory)
    return INDEX in files and "oci-layout" in files


def find_files(file: BinaryIO) -> ArchiveFiles | None:
    """The files of a container image in an uncompressed archive; None when it is something else.

    ``file`` can seek. Raises TarError and OciError.
    """
    file.seek(0)
    found = ArchiveFiles(file)
    for number, member in enumerate(TarReader(_Seeking(file)).members()):
        try:
            name = clean_path(member.name).decode()
        except (TarError, UnicodeDecodeError):
            return None
        if not _KNOWN.fullmatch(name):
            return None
        name = name[1:]
        if number >= MAX_FILES:
            raise OciError(detail=f"it has more than {MAX_FILES} members")
        if member.kind == stat.S_IFDIR:
            continue
        if name in found.places or name in found.links:
            raise OciError(detail=f"it has {name!r} twice")
        if member.kind == stat.S_IFREG:
            found.places[name] = (file.tell(), member.size)
        elif member.kind in {0, stat.S_IFLNK}:
            target = os.fsdecode(member.target)
            if member.kind:
                target = posixpath.join(posixpath.dirname(name), target)
            found.links[name] = posixpath.normpath(target)
    if _MARKS.isdisjoint(found.places):
        return None
    return found


@contextmanager
def archive(file: BinaryIO) -> Iterator[tuple[ArchiveFiles | None, Readable]]:
    """What an archive is: the files of a container image, or (None) the archive of a root.

    With it comes what the archive of a root is to be read from, uncompressed. ``file`` need not be
    able to seek. Raises TarError, OciError, OSError.
    """
    start = file.tell() if file.seekable() else None
    first = _read_up_to(file, MAGIC_LENGTH)
    source = decompressed(Chained(first, file))
    peeked = _read_up_to(source, _PEEKED)
    whole = Chained(peeked, source)
    if not _looks_like_one(peeked):
        yield None, whole
        return
    if start == 0 and not form_of(first):
        yield _found_or_root(file)
        return
    with FileIO(os.open(tempfile.gettempdir(), _UNNAMED, 0o600), "r+") as raw:
        left = MAX_SPOOLED
        while data := whole.read(CHUNK):
            left -= len(data)
            if left < 0:
                raise OciError(
                    detail=f"it has more than {MAX_SPOOLED >> 30} GiB uncompressed: give it "
                    "uncompressed, in a file"
                )
            raw.write(data)
        with open(raw.fileno(), "rb", closefd=False) as spooled:
            yield _found_or_root(spooled)


def _found_or_root(file: BinaryIO) -> tuple[ArchiveFiles | None, Readable]:
    found = find_files(file)
    file.seek(0)
    return found, file


def _looks_like_one(data: bytes) -> bool:
    """Whether the first member that is not the top directory has a name a container image has."""
    try:
        for member in TarReader(BytesIO(data)).members():
            name = clean_path(member.name).decode()
            if name != "/":
                return _KNOWN.fullmatch(name) is not None
    except (TarError, UnicodeDecodeError):
        pass
    return False


def _missing(name: str) -> OciError:
    return OciError(detail=f"it lacks the file {name!r}: was all of it copied?")


def _read_up_to(source: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data


class _Section:
    """Some bytes of a file, from wherever its position is meanwhile."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._at = offset
        self._end = offset + size

    def read(self, size: int, /) -> bytes:
        """See `Readable`."""
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data


class _Seeking:
    """A file from its position on, of which parts are skipped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        at = file.tell()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(at)

    def read(self, size: int, /) -> bytes:
        """See `Readable`."""
        return self._file.read(size)

    def skip(self, size: int, /) -> int:
        """See `Skipping`."""
        at = self._file.tell()
        return self._file.seek(min(at + size, max(at, self._size))) - at
