"""Which objects are needed: those of images, and those that were just added or are being looked at.

::

    AddObjects ──hold──► (stored) ──11 s after the call──► released
    AddImage ──hold all──► all there? ── image on disk ──► counted, released

An object is held before anybody looks whether it is there, and one is deleted only under the lock
and only when it is neither held nor counted: what was found can then no longer go.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from smallstack.objects.store import ObjectStore
from smallstack.proto.image import Image
from smallstack.proto.kinds import Hash

HOLD_SECONDS: Final = 11.0
"""How long added objects are held after the call, for an image to refer to them."""


def objects_of(image: Image) -> dict[bytes, int]:
    """Digest to size of every object of an image; 0 where the image does not tell the size."""
    found = image.file_system.objects() if image.file_system is not None else {}
    for annotation in (image.release_notes, image.build_log):
        if annotation is not None and annotation.object is not None:
            found.setdefault(annotation.object, 0)
    return found


class References:
    """Counts by digest; any thread may use them."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._images: Counter[bytes] = Counter()
        self._unique_bytes = 0
        self._held: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many different objects images refer to."""
        return len(self._images)

    @property
    def unique_bytes(self) -> int:
        """Bytes of all objects that images refer to, each counted once."""
        return self._unique_bytes

    def count(self, hash_: bytes) -> int:
        """How many images need an object."""
        return self._images[hash_]

    def add(self, objects: Mapping[bytes, int]) -> None:
        """One image more needs these, digest to size."""
        with self._lock:
            self._unique_bytes += self._unreferenced_bytes(objects)
            self._images.update(dict.fromkeys(objects, 1))

    def remove(self, objects: Mapping[bytes, int]) -> None:
        """One image less needs these."""
        with self._lock:
            _decrement(self._images, objects)
            self._unique_bytes -= self._unreferenced_bytes(objects)

    def hold(self, hashes: Iterable[bytes]) -> None:
        """Keep these until `release`."""
        with self._lock:
            self._held.update(dict.fromkeys(hashes, 1))

    def release(self, hashes: Iterable[bytes]) -> None:
        """Undo one `hold`."""
        with self._lock:
            _decrement(self._held, hashes)

    def is_needed(self, hash_: bytes) -> bool:
        """Whether an object may not be deleted."""
        return hash_ in self._images or hash_ in self._held

    def missing(self) -> list[bytes]:
        """Objects that images need and the store lacks: none, unless somebody took them away."""
        with self._lock:
            needed = list(self._images)
        return [hash_ for hash_ in needed if self._store.size(hash_) is None]

    def unreferenced(self) -> list[tuple[Hash, int]]:
        """Digest and size of every object in the store that no image needs."""
        return [(hash_, size) for hash_, size in self._store.list() if hash_ not in self._images]

    def delete_unreferenced(self, percentage: int, bytes_: int) -> tuple[int, int]:
        """Delete objects that nothing needs, in random order; how many, and their bytes.

        It goes on until ``percentage`` of them and ``bytes_`` bytes are gone, or none is left.
        """
        candidates = [one for one in self.unreferenced() if not self.is_needed(one[0])]
        random.shuffle(candidates)
        count = freed = 0
        for hash_, _ in candidates:
            if count * 100 >= percentage * len(candidates) and freed >= bytes_:
                break
            with self._lock:
                if not self.is_needed(hash_):
                    freed += self._store.delete(hash_)
                    count += 1
        return count, freed

    def _unreferenced_bytes(self, objects: Mapping[bytes, int]) -> int:
        """Bytes of those that no image needs at this moment."""
        return sum(
            size or self._store.size(hash_) or 0
            for hash_, size in objects.items()
            if hash_ not in self._images
        )


def _decrement(counts: Counter[bytes], hashes: Iterable[bytes]) -> None:
    for hash_ in set(hashes):
        counts[hash_] -= 1
        if counts[hash_] <= 0:
            del counts[hash_]
