"""Objects from a server, one after the other, for tools that keep none of them."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

from smallstack.objects.errors import ObjectCorruptError
from smallstack.objects.source import ObjectSource, Reader, check_sizes

READ: Final = 1 << 20
"""Bytes read at a time, and with them held."""


class Piece(NamedTuple):
    """Some bytes of the object at ``position`` of those asked for; ``last``: it ends with them."""

    position: int
    data: memoryview
    last: bool


async def read_objects(
    source: ObjectSource, wanted: Sequence[tuple[bytes, int]]
) -> AsyncGenerator[Piece]:
    """The bytes of objects (SHA-512, size above 0), in order; an object may come up twice.

    Every object is checked: before its last piece is handed out ObjectCorruptError is raised when
    it is wrong. Raises ObjectMissingError, ObjectSizeError, FetchError too.
    """
    async with source.open_objects([hash_ for hash_, _ in wanted]) as stream:
        left = check_sizes(stream, wanted, source.name)
        reader = Reader(stream, source.name)
        position, inside = 0, 0
        digest = hashlib.sha512()
        while left:
            data = memoryview(await reader.read(READ, left))
            left -= len(data)
            while data:
                hash_, size = wanted[position]
                part = data[: size - inside]
                data = data[len(part) :]
                inside += len(part)
                digest.update(part)
                if inside < size:
                    yield Piece(position, part, False)
                    continue
                if digest.digest() != hash_:
                    raise ObjectCorruptError(
                        hash=hash_.hex(), server=source.name, found=digest.hexdigest()
                    )
                yield Piece(position, part, True)
                position, inside, digest = position + 1, 0, hashlib.sha512()
