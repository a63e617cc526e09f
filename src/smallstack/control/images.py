"""What imagetool does: images made and uploaded, listed, looked at, fetched.

Every function takes the open connections it needs; nothing here prints.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from smallstack.client.imageserver import ImageServerClient
from smallstack.client.objectserver import ObjectServerClient
from smallstack.control.image_server import ImageServer
from smallstack.control.upload import UploadSink
from smallstack.images.build import Report, Sink
from smallstack.images.container import AtEnd, Platform
from smallstack.images.errors import ImageError
from smallstack.images.filter import PathFilter, load_filter
from smallstack.images.model import Summary, check_required_paths, summarise
from smallstack.images.mtimes import with_mtimes_of
from smallstack.images.names import ROOT, check_name, parent
from smallstack.images.oci_layout import Choice
from smallstack.images.source import ContainerChoice, from_source
from smallstack.images.triggers import load_triggers
from smallstack.images.unpack import Unpacking
from smallstack.objects.intake import Intake
from smallstack.objects.peer import PeerSource
from smallstack.objects.source import REQUEST, Reader, check_sizes
from smallstack.objects.store import ObjectStore
from smallstack.outlast import outlast
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.image import Image
from smallstack.proto.kinds import NANOSECONDS_PER_SECOND, Time
from smallstack.srpc.client import Client

MINIMUM_EXPIRY_NS: Final = 15 * 60 * NANOSECONDS_PER_SECOND
READ: Final = 1 << 20


@dataclass
class Progress:
    """How far an operation is; ``changed`` is called now and then, from any thread."""

    changed: Callable[["Progress"], None] = lambda _: None
    files: int = 0
    total_files: int = 0
    file_bytes: int = 0
    total_bytes: int = 0
    uploaded: int = 0
    uploaded_bytes: int = 0


@dataclass(frozen=True)
class Added:
    """An image that was added."""

    name: str
    summary: Summary
    uploaded: int
    uploaded_bytes: int
    warnings: list[str]


@dataclass(frozen=True)
class NewImage:
    """What an image is to be made of."""

    name: str
    source: Path
    filter_file: Path | None = None
    triggers_file: Path | None = None
    expires_in_ns: int = 0
    tags: Mapping[str, str] | None = None
    send_all: bool = False
    """Send contents that the server has as well: it then replaces those that were damaged."""
    which: Choice = field(default_factory=Choice)
    """Which image of a container archive."""
    platform: str = ""
    """The image whose kernel and init make a container image a VM."""
    at_end: AtEnd = "stop"
    """What follows the end of that VM's program."""
    copy_mtimes_from: str = ""
    """The image whose modification times are kept where nothing else has changed."""


async def add_image(server: ImageServer, new: NewImage, progress: Progress) -> Added:
    """Make an image of a directory, a tar archive (``-`` is standard input) or a container image.

    Raises ImageNameError, ImageError, FilterError, TriggersError, SourceError, TarError, OciError,
    and what the connection raises. Contents that the server has are not sent, unless asked for.
    """
    image = Image(tags=dict(new.tags or {}))
    if new.filter_file is not None:
        image.filter = load_filter(new.filter_file)
    if new.triggers_file is not None:
        image.triggers = load_triggers(new.triggers_file)
    path_filter = PathFilter(image.filter.filter_lines) if image.filter is not None else None
    container = ContainerChoice(new.which)
    older: FileSystem | None = None

    def read(sink: Sink, report: Report) -> FileSystem:
        tree = from_source(new.source, sink, path_filter, report, container)
        return tree if older is None else with_mtimes_of(older, tree)

    await check_new(server, new.name, new.expires_in_ns)
    if new.copy_mtimes_from:
        async with server.connect() as client:
            older = (await show_image(client, new.copy_mtimes_from))[0].file_system
    if new.platform:
        async with server.connect() as client:
            found, _ = await show_image(client, new.platform)
        assert found.file_system is not None
        platform = Platform(new.platform, found.file_system, new.at_end)
        container = ContainerChoice(new.which, platform)
    if new.expires_in_ns:
        image.expires_at = expiry(new.expires_in_ns)
    return await upload_image(server, new.name, image, read, progress, send_all=new.send_all)


async def check_new(server: ImageServer, name: str, expires_in_ns: int = 0) -> None:
    """Whether an image of this name can be added; raises ImageNameError and ImageError."""
    check_name(name)
    if 0 < expires_in_ns < MINIMUM_EXPIRY_NS:
        raise ImageError(name=name, detail="it must live for 15 minutes at least")
    async with server.connect() as client:
        images = ImageServerClient(client)
        if await images.check_image(name):
            raise ImageError(name=name, detail="it exists; images never change, name a new one")
        if parent(name) != ROOT and not await images.check_directory(parent(name)):
            raise ImageError(
                name=name,
                detail=f"there is no directory {parent(name)!r}: `imagetool mkdir {parent(name)}`",
            )


def expiry(expires_in_ns: int) -> Time:
    """When an image expires that lives so long from now on."""
    return Time.from_nanoseconds(Time.now().nanoseconds_since_epoch + expires_in_ns)


async def upload_image(
    server: ImageServer,
    name: str,
    image: Image,
    read: Callable[[Sink, Report], FileSystem],
    progress: Progress,
    *,
    send_all: bool = False,
) -> Added:
    """Add an image whose tree ``read`` makes, in a thread, giving all contents to the sink.

    Raises what ``read``, the connection and the server raise.
    """
    report = Report()
    async with server.connect() as client, server.connect(move_local=True) as adding:
        checker = None if send_all else ObjectServerClient(client)
        sink = UploadSink(checker, ObjectServerClient(adding))

        def advanced(done: Report) -> None:
            progress.files, progress.file_bytes = done.files, done.file_bytes
            progress.uploaded, progress.uploaded_bytes = sink.uploaded, sink.uploaded_bytes
            progress.changed(progress)

        report.advanced = advanced
        async with sink:
            tree = await asyncio.to_thread(read, sink, report)
        advanced(report)
        image.file_system = tree
        check_required_paths(name, image)
        await ImageServerClient(client).add_image(name, image)
    return Added(name, summarise(tree), sink.uploaded, sink.uploaded_bytes, report.warnings())


async def show_image(client: Client, name: str) -> tuple[Image, Summary]:
    """An image and what its tree holds; raises ImageError when there is none."""
    image = await ImageServerClient(client).get_image(name)
    if image is None:
        raise ImageError(name=name, detail="it does not exist: check `imagetool list`")
    if image.file_system is None:
        raise ImageError(name=name, detail="it has no file system")
    return image, await asyncio.to_thread(summarise, image.file_system)


async def get_image(
    server: ImageServer, name: str, directory: Path, progress: Progress
) -> list[str]:
    """Lay an image out as a new directory; lines about what could not be.

    Raises ImageError, UnpackError, ObjectMissingError, ObjectCorruptError, FetchError.
    """
    async with server.connect() as client:
        image, summary = await show_image(client, name)
    tree = image.file_system
    assert tree is not None
    progress.total_files, progress.total_bytes = summary.objects, summary.object_bytes
    source = PeerSource(server.address, partial(server.connect, move_local=True))
    with await asyncio.to_thread(Unpacking, tree, directory) as unpacking:
        order = list(tree.objects().items())
        for start in range(0, len(order), REQUEST):
            await fetch_into(source, unpacking.store, order[start : start + REQUEST], progress)
        unpacked = await asyncio.to_thread(unpacking.finish)
    return unpacked.warnings()


async def fetch_into(
    source: PeerSource,
    store: ObjectStore,
    order: Sequence[tuple[bytes, int]],
    progress: Progress,
) -> None:
    """Fetch objects (digest, size) into a store; raises what `get_image` raises."""
    intake = Intake(store, None, order, source.name)
    try:
        async with source.open_objects([hash_ for hash_, _ in order]) as stream:
            check_sizes(stream, order, source.name)
            left = sum(size for _, size in order)
            reader = Reader(stream, source.name)
            while left:
                data = await reader.read(READ, left)
                left -= len(data)
                stored = await outlast(asyncio.to_thread(intake.feed, data))
                if intake.error is not None:
                    raise intake.error
                progress.files += len(stored)
                progress.file_bytes += len(data)
                progress.changed(progress)
    finally:
        progress.files += len(await outlast(asyncio.to_thread(intake.finish)))
        progress.changed(progress)
    if intake.error is not None:
        raise intake.error
