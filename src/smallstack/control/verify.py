"""Whether an image server has what an image needs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from smallstack.client.objectserver import ObjectServerClient
from smallstack.control.image_server import ImageServer
from smallstack.control.images import Progress, show_image
from smallstack.control.transfer import read_objects
from smallstack.objects.errors import ObjectCorruptError, ObjectMissingError
from smallstack.objects.peer import PeerSource
from smallstack.objects.source import REQUEST

ASKED: Final = 10_000
"""Digests in a question."""


@dataclass
class Content:
    """What was looked at, and what was found wrong: digests in hex."""

    objects: int = 0
    object_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    """The server lacks them, or has them in another size."""
    corrupt: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether nothing was found."""
        return not self.missing and not self.corrupt


async def check_content(
    server: ImageServer, name: str, *, verify: bool, progress: Progress
) -> Content:
    """Ask for every object of an image; with ``verify`` fetch them all and check their SHA-512.

    Raises ImageError when there is no such image, FetchError.
    """
    async with server.connect() as client:
        image, summary = await show_image(client, name)
        assert image.file_system is not None
        objects = await asyncio.to_thread(image.file_system.objects)
        content = Content(summary.objects, summary.object_bytes)
        wanted = list(objects.items())
        asker = ObjectServerClient(client)
        for start in range(0, len(wanted), ASKED):
            part = wanted[start : start + ASKED]
            sizes = await asker.check_objects([hash_ for hash_, _ in part])
            content.missing += [
                hash_.hex()
                for (hash_, size), found in zip(part, sizes, strict=True)
                if found != size
            ]
    if verify:
        progress.total_files, progress.total_bytes = summary.objects, summary.object_bytes
        source = PeerSource(server.address, partial(server.connect, move_local=True))
        lacking = set(content.missing)
        there = [(hash_, size) for hash_, size in wanted if hash_.hex() not in lacking]
        for start in range(0, len(there), REQUEST):
            await _verify(source, there[start : start + REQUEST], content, progress)
    return content


async def _verify(
    source: PeerSource, wanted: Sequence[tuple[bytes, int]], content: Content, progress: Progress
) -> None:
    """Read objects; after a wrong one the rest is asked for anew."""
    while wanted:
        done = 0
        try:
            async for piece in read_objects(source, wanted):
                done += piece.last
                progress.files += piece.last
                progress.file_bytes += len(piece.data)
                progress.changed(progress)
            return
        except ObjectCorruptError as error:
            content.corrupt.append(error.hash)
            wanted = wanted[done + 1 :]
        except ObjectMissingError as error:
            # It went while we were reading: somebody has deleted the image.
            content.missing.append(error.hash)
            wanted = [(hash_, size) for hash_, size in wanted if hash_.hex() != error.hash]
