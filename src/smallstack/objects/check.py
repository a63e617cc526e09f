"""Reads every object of a store again and says which are not what they should be.

It only reads and takes no lock, so it may run beside the daemon that has the store: objects never
change, and one that goes meanwhile is not held against the store. Blocks; call it in a thread.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Final

from smallstack.objects.errors import StoreError
from smallstack.objects.index import Index, Known
from smallstack.objects.packs import PACKS
from smallstack.objects.store import list_objects, object_path, read_digests
from smallstack.telemetry.errors import describe

CHUNK: Final = 64
"""Objects that a thread takes at a time."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """An object whose file is not what it should be; ``detail`` says in what."""

    hash: bytes
    detail: str


@dataclass(slots=True)
class Checked:
    """What was read: objects and their bytes; ``unknown`` files are in no index and not read."""

    objects: int = 0
    size: int = 0
    unknown: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    missing: list[bytes] = field(default_factory=list)
    """Objects that the index names and whose files are not there."""

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not self.wrong and not self.missing


def check_objects(
    directory: Path,
    index: Path | None = None,
    changed: Callable[[Checked, int, int], None] = lambda *_: None,
    jobs: int = 2,
) -> Checked:
    """Check every object below ``directory``, or with an ``index`` (of a flat store) those in it.

    ``changed`` is told what was found so far, of how many objects and bytes; any thread calls it.
    Raises StoreError when the directory cannot be read.
    """
    try:
        os.scandir(directory).close()
    except OSError as error:
        raise StoreError(directory=directory, detail=describe(error)) from error
    known = None if index is None else Index(index).read()
    root, flat = os.fspath(directory), index is not None
    found = Checked()
    there: list[tuple[bytes, int]] = []
    for hash_, size in list_objects(root, flat):
        if known is None or (hash_ in known and not known[hash_].pack):
            there.append((hash_, size))
        else:
            found.unknown += 1
    packed = {} if known is None else {hash_: one for hash_, one in known.items() if one.pack}
    packs = _packs(root)
    there.extend((hash_, one.size) for hash_, one in packed.items() if one.pack in packs)
    total = sum(size for _, size in there)

    def check(part: Sequence[tuple[bytes, int]]) -> list[tuple[int, Wrong | None]]:
        return [_check(root, h, None if known is None else known[h]) for h, _ in part]

    with ThreadPoolExecutor(jobs, "check") as pool:
        for results in pool.map(check, _parts(there)):
            for size, wrong in results:
                found.objects += 1
                found.size += size
                if wrong is not None:
                    found.wrong.append(wrong)
            changed(found, len(there), total)
    if index is not None and known is not None:
        found.missing = sorted(known.keys() - {hash_ for hash_, _ in there})
        if not found.ok:  # unless they were let go meanwhile
            still = Index(index).read()
            found.wrong = [one for one in found.wrong if one.hash in still]
            found.missing = [
                h
                for h in found.missing
                if h in still and not os.path.exists(_path(root, h, still[h]))  # noqa: PTH110 - a text
            ]
    return found


def _packs(root: str) -> set[int]:
    """The numbers of the packs that are there."""
    try:
        names = os.listdir(f"{root}/{PACKS}")  # noqa: PTH208 - names only
    except FileNotFoundError:
        return set()
    return {int(name) for name in names if name.isdecimal()}


def _parts(there: Sequence[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    iterator = iter(there)
    while part := list(islice(iterator, CHUNK)):
        yield part


def _path(root: str, hash_: bytes, known: Known | None) -> str:
    """The file that an object is in, with an index that of a flat store."""
    if known is not None and known.pack:
        return f"{root}/{PACKS}/{known.pack}"
    return object_path(root, hash_, known is not None)


def _check(root: str, hash_: bytes, known: Known | None) -> tuple[int, Wrong | None]:
    """Bytes read of one object, and what is wrong with it."""
    try:
        with open(_path(root, hash_, known), "rb", buffering=0) as file:  # noqa: PTH123 - a text
            if known is None or not known.pack:
                digest, keyed, size = read_digests(file)
            else:
                data = os.pread(file.fileno(), known.size, known.offset)
                digest, keyed, size = read_digests(BytesIO(data))
    except FileNotFoundError:
        return 0, None  # it went meanwhile
    except OSError as error:
        return 0, Wrong(hash_, describe(error))
    if known is not None and size != known.size:
        return size, Wrong(hash_, f"{size} bytes instead of {known.size}")
    if digest != hash_:
        return size, Wrong(hash_, f"its content has the digest {digest.hex()}")
    if known is not None and keyed != known.blake3:
        return size, Wrong(hash_, "the index has another BLAKE3 of it")
    return size, None
