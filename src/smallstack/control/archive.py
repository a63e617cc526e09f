"""An image as a tar archive, streamed: what is held are some thousand headers and a MiB."""

import asyncio
import contextlib
import gzip
import lzma
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import zstandard

from smallstack.control.image_server import ImageServer
from smallstack.control.images import Progress, show_image
from smallstack.control.transfer import read_objects
from smallstack.images.errors import ArchiveError
from smallstack.images.tar_writer import END, TarMember, tar_members
from smallstack.objects.errors import FetchError
from smallstack.objects.peer import PeerSource
from smallstack.objects.source import ObjectSource
from smallstack.telemetry.errors import describe

MEMBERS: Final = 4096
"""Headers that are held, and whose objects are asked for at a time."""
COMPRESSIONS: Final = ("none", "zstd", "gzip", "xz")
STANDARD_OUTPUT: Final = "-"


class _Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Out:
    """What an archive is written to. Raises ArchiveError."""

    def __init__(self, inner: _Writer, target: str) -> None:
        self._inner = inner
        self._target = target

    def write(self, data: bytes) -> None:
        try:
            self._inner.write(data)
        except OSError as error:
            raise _failed(self._target, error) from error


def _failed(target: str, error: OSError) -> ArchiveError:
    """That it cannot be written; with the path that stands in the way, if that is another."""
    path = "to standard output" if target == STANDARD_OUTPUT else target
    other = error.filename2 or error.filename
    about = f": {other}" if other and str(other) != target else ""
    return ArchiveError(path=path, detail=f"{error.strerror or error}{about}")


async def write_archive(
    server: ImageServer, name: str, target: str, compression: str, progress: Progress
) -> list[str]:
    """Write an image to the file ``target``, ``-`` is standard output; what could not be in it.

    The file gets its name when it is whole; equal images give equal bytes. Raises ImageError,
    ArchiveError, ObjectMissingError, ObjectCorruptError, FetchError.
    """
    async with server.connect() as client:
        image, summary = await show_image(client, name)
    tree = image.file_system
    assert tree is not None
    progress.total_files, progress.total_bytes = summary.files, summary.data_bytes
    source = PeerSource(server.address, partial(server.connect, move_local=True))
    left_out: list[bytes] = []
    with _output(target, compression) as out:
        members = tar_members(tree, left_out)
        while batch := list(islice(members, MEMBERS)):
            await _write(source, batch, out, progress)
        await asyncio.to_thread(out.write, END)
    warnings = [f"{len(left_out)} socket(s) and odd device(s) left out"] if left_out else []
    if summary.computed:
        warnings.append(f"{summary.computed} computed file(s) are empty in it")
    return warnings


async def _write(
    source: ObjectSource, batch: list[TarMember], out: _Out, progress: Progress
) -> None:
    following = iter(batch)

    def headers() -> bytes:
        """Those up to the next member with content, its own included."""
        parts = []
        for member in following:
            parts.append(member.header)
            if member.size:
                break
        return b"".join(parts)

    full = [member for member in batch if member.size]
    begun = -1
    if full:
        wanted = [(member.hash, member.size) for member in full]
        try:
            async with contextlib.aclosing(read_objects(source, wanted)) as pieces:
                async for position, data, last in pieces:
                    parts: list[bytes | memoryview] = [data]
                    if position != begun:
                        begun = position
                        parts.insert(0, headers())
                    if last:
                        parts.append(full[position].padding)
                        progress.files += 1
                    await asyncio.to_thread(out.write, b"".join(parts))
                    progress.file_bytes += len(data)
                    progress.changed(progress)
        except OSError as error:  # of the server's: what `out` raises is none
            raise FetchError(server=source.name, detail=describe(error)) from error
    await asyncio.to_thread(out.write, headers())


@contextlib.contextmanager
def _output(target: str, compression: str) -> Iterator[_Out]:
    """What is written to, through a compressor; a file that is not finished is removed."""
    try:
        if target == STANDARD_OUTPUT:
            with _compressed(sys.stdout.buffer, compression) as writer:
                yield _Out(writer, target)
            sys.stdout.buffer.flush()
            return
        path = Path(target)
        temporary = path.with_name(f".{path.name}.{os.getpid()}~")
        try:
            with temporary.open("xb") as file, _compressed(file, compression) as writer:
                yield _Out(writer, target)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _failed(target, error) from error


@contextlib.contextmanager
def _compressed(file: BinaryIO, compression: str) -> Iterator[_Writer]:
    match compression:
        case "zstd":
            with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as writer:
                yield writer
        case "gzip":
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
                yield zipped
        case "xz":
            with lzma.LZMAFile(file, "wb") as packed:
                yield packed
        case _:
            yield file
