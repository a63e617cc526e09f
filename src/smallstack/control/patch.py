"""``imagetool patch-directory``: a directory brought to an image, fetching only what it lacks."""

import asyncio
from functools import partial
from pathlib import Path

from smallstack.control.image_server import ImageServer
from smallstack.control.images import Progress, fetch_into, show_image
from smallstack.images.diff import Change
from smallstack.images.patch import Patch, Patched
from smallstack.objects.peer import PeerSource
from smallstack.objects.source import REQUEST


async def changes_of(server: ImageServer, name: str, directory: Path) -> list[Change]:
    """What `patch_directory` would do. Raises what it raises."""
    async with server.connect() as client:
        image, _ = await show_image(client, name)
    with await asyncio.to_thread(Patch, image, directory) as patch:
        return patch.changes


async def patch_directory(
    server: ImageServer, name: str, directory: Path, progress: Progress
) -> Patched:
    """Bring ``directory`` to the image ``name``.

    Raises ImageError, PatchError, SourceError, ObjectMissingError,
    ObjectCorruptError, FetchError.
    """
    async with server.connect() as client:
        image, _ = await show_image(client, name)
    with await asyncio.to_thread(Patch, image, directory) as patch:
        if patch.is_done:
            return Patched()
        order = list((await asyncio.to_thread(patch.begin)).items())
        progress.total_files, progress.total_bytes = len(order), sum(size for _, size in order)
        source = PeerSource(server.address, partial(server.connect, move_local=True))
        for start in range(0, len(order), REQUEST):
            await fetch_into(source, patch.store, order[start : start + REQUEST], progress)
        return await asyncio.to_thread(patch.apply)
