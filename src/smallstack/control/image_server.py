"""The image server as a tool reaches it, and what is listed there."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from smallstack.client.imageserver import ImageServerClient
from smallstack.identity.credentials import ClientCredentials
from smallstack.proto.image import Directory
from smallstack.proto.imageserver import ListSelectedImagesRequest
from smallstack.srpc.client import Client, dial


@dataclass(frozen=True)
class ImageServer:
    """Where the image server is, and as whom to go there; without credentials in clear."""

    address: str
    credentials: ClientCredentials | None

    @asynccontextmanager
    async def connect(self, *, move_local: bool = False) -> AsyncIterator[Client]:
        """A connection for the time of the block; ``move_local``, see `dial`, for many bytes."""
        async with await dial(self.address, self.credentials, move_local=move_local) as client:
            yield client


async def list_images(
    client: Client,
    directory: str = "",
    *,
    ignore_expiring: bool = False,
    tags: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Names of images, numbers in them in the order of their values."""
    request = ListSelectedImagesRequest(
        directory_name=directory,
        ignore_expiring_images=ignore_expiring,
        tags_to_match={key: list(values) for key, values in (tags or {}).items()},
    )
    names = []
    async with client.raw("ImageServer.ListSelectedImages") as conn:
        conn.encode(request)
        await conn.flush()
        while name := await conn.read_line():
            names.append(name.decode(errors="replace"))
    return sorted(names, key=version_key)


async def list_directories(client: Client) -> list[Directory]:
    """All directories of images, sorted."""
    found = await ImageServerClient(client).list_directories()
    return sorted(found, key=lambda directory: version_key(directory.name))


def version_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``a.10`` behind ``a.9``."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for char in name + "\0":
        if char.isascii() and char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), digits))
            digits = ""
        parts.append((1, 0, char))
    return parts
