"""What a cache has on its disk, beside what it says it has."""

import os
from pathlib import Path

from smallstack.objects.cache import ObjectCache
from smallstack.objects.packs import padded


def files_of(directory: Path) -> set[bytes]:
    """Objects that have a file of their own."""
    return {
        bytes.fromhex("".join(path.relative_to(directory).parts)) for path in directory.glob("??/*")
    }


def objects_on_disk(cache: ObjectCache) -> set[bytes]:
    """All there are, once it is sure that packs hold those they should, and nothing besides."""
    packed: dict[int, list[tuple[int, int]]] = {}
    found = files_of(cache.directory)
    for hash_, known in cache._held.items():
        if known.pack:
            assert hash_ not in found, "it is there twice"
            found.add(hash_)
            end = known.offset + padded(known.size)
            packed.setdefault(known.pack, []).append((known.offset, end))
    packs = {int(path.name) for path in (cache.directory / ".packs").iterdir()}
    assert packs == set(packed)
    for number, spots in packed.items():
        with (cache.directory / ".packs" / str(number)).open("rb") as file:
            for start, end in _data(file.fileno()):
                at = start
                for first, last in sorted(spots):
                    at = max(at, last) if first <= at else at
                assert at >= end, f"pack {number} keeps bytes {at} to {end} for nobody"
    return found


def _data(fd: int) -> list[tuple[int, int]]:
    size, at, found = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found
