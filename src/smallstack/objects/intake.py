"""Cuts a run of bytes into the objects it is made of and stores each as it ends.

Small objects are checked many at a time, in the lanes of the processor, and go into a pack. A
large one gets a file of its own as it comes, which `Checker` reads again, several side by side,
before it gets its name. What is stored is believed once the index names it: a kill before
leaves bytes in a pack that nothing names, or a file that the next start removes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from smallstack.objects import pack
from smallstack.objects.checker import Checker
from smallstack.objects.errors import ObjectCorruptError, ObjectSizeError
from smallstack.objects.index import Index
from smallstack.objects.packs import Packs, PackWriter, Part
from smallstack.objects.store import IN_MEMORY, ObjectStore, Stored, Unchecked
from smallstack.proto.kinds import Hash


@dataclass(slots=True)
class Taken:
    """What one `Intake.take` stored."""

    packed: list[Stored] = field(default_factory=list)
    """Small objects, in a pack."""
    own: list[Stored] = field(default_factory=list)
    """Objects with a file of their own."""


class Intake:
    """Takes the bytes of ``objects`` (digest, size) in order; one thread at a time uses it, and
    another may `settle`.

    An object that is wrong ends the run: ``error`` says why, and nothing of it is kept, nor of the
    small ones behind it. What was whole before stays, and stands in the index.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: Index | None,
        objects: Sequence[tuple[bytes, int]],
        server: str,
        packs: Packs | None = None,
        together: int = IN_MEMORY,
    ) -> None:
        """``index`` is told of what is stored; ``server`` is named in errors.

        Without an index the store is one that nobody opens again; without packs every object gets
        a file of its own. Those of at most ``together`` bytes are checked before they are stored.
        """
        self.error: Exception | None = None
        self._store = store
        self._index = index
        self._server = server
        self._together = together
        self._objects = list(objects)
        self._next = 0
        self._large_to_come = -1  # counted by the first bytes, in their thread
        self._writer = PackWriter(packs) if packs is not None else None
        self._hash = b""
        self._size = 0
        self._cut: list[bytes | bytearray | memoryview] = []
        self._cut_left = 0
        self._large: Unchecked | None = None
        self._checker: Checker | None = None

    def feed(self, *parts: bytes | bytearray | memoryview) -> list[Stored]:
        """Take the next bytes; the objects that are whole, checked, stored and indexed now."""
        return self.settle(self.take(*parts))

    def take(self, *parts: bytes | bytearray | memoryview) -> "Taken":
        """The first half of `feed`: what was checked and stored. `settle` has to follow, which
        another thread may do while this one takes more.
        """
        taken = Taken()
        if self.error is not None:
            return taken
        whole: list[Part] = []
        try:
            try:
                for data in parts:
                    self._split(data, whole)
            finally:
                if whole:
                    self._store_whole(whole, taken)
            taken.own.extend(self._take_checked())
        except Exception as error:
            self._fail(error)
            self._drop_cut()
        return taken

    def settle(self, taken: "Taken") -> list[Stored]:
        """The second half of `feed`, in the order in which they were taken: have the index name
        the objects."""
        return self._enter(taken.own + taken.packed)

    def finish(self) -> list[Stored]:
        """What was still being checked; call it at the end, whether all has come or not."""
        self._drop_cut()
        try:
            if self._checker is not None:
                self._checker.close()
            return self._enter(self._take_checked())
        finally:
            if self._writer is not None:
                self._writer.close()

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error

    def _drop_cut(self) -> None:
        """Remove the object that is not whole."""
        self._cut, self._cut_left = [], 0
        large, self._large = self._large, None
        if large is not None:
            large.abort()

    def _enter(self, stored: list[Stored]) -> list[Stored]:
        """Have the index name what is stored; nothing of it stays if it cannot."""
        try:
            if self._index is not None:
                self._index.add(stored)
        except Exception as error:
            self._fail(error)
            for done in stored:
                if not done.pack:
                    with suppress(OSError):
                        self._store.delete(done.hash)
            if self._writer is not None:
                with suppress(OSError):
                    self._writer.take_back(one for one in stored if one.pack)
            return []
        return stored

    # Splitting.

    def _split(self, data: bytes | bytearray | memoryview, whole: list[Part]) -> None:
        """Add the small objects that are whole now to ``whole``; large ones go on their way."""
        if self._large_to_come < 0:
            self._large_to_come = sum(size > self._together for _, size in self._objects)
        at = 0
        while at < len(data):
            if self._large is not None:
                part = memoryview(data)[at : at + self._large.left]
                self._large.write(part)
                at += len(part)
                self._end_large()
            elif self._cut_left:
                self._cut.append(data[at : at + self._cut_left])
                at += len(self._cut[-1])
                self._cut_left -= len(self._cut[-1])
                if not self._cut_left:
                    whole.append((self._hash, b"".join(self._cut), 0, self._size))
                    self._cut = []
            else:
                self._next, at = pack.split(
                    self._objects, self._next, data, at, self._together, whole
                )
                if at < len(data):
                    self._begin()

    def _begin(self) -> None:
        """Begin an object that is large, or not whole."""
        if self._next == len(self._objects):
            raise ObjectSizeError(hash="after the last one", server=self._server, found=1, size=0)
        self._hash, self._size = self._objects[self._next]
        self._next += 1
        if self._size > self._together:
            self._large = self._store.unchecked(self._size, self._hash)
            self._large_to_come -= 1
        else:
            self._cut_left = self._size

    # Small ones.

    def _store_whole(self, whole: list[Part], taken: Taken) -> None:
        """Check objects of which all bytes are there; store those before the first wrong one.

        Raises ObjectCorruptError for that one.
        """
        if self._writer is not None:
            size, _ = pack.total(whole)
            with self._store.writing(size):
                right, taken.packed = self._writer.enter(whole)
        else:
            right, blake3s = pack.check(whole)
            for (hash_, buffer, at, size), blake3 in zip(whole, blake3s, strict=False):
                added = self._store.put_checked(hash_, memoryview(buffer)[at : at + size])
                taken.own.append(Stored(Hash(hash_), size, blake3, added))
        if right < len(whole):
            hash_, buffer, at, size = whole[right]
            (found,) = pack.sha512_many([bytes(memoryview(buffer)[at : at + size])])
            raise self._corrupt(hash_, found)

    # Large ones.

    def _end_large(self) -> None:
        if self._large is not None and not self._large.left:
            if self._checker is None:
                self._checker = Checker(self._store, self._corrupt)
            self._checker.add(self._large)
            self._large = None
            if not self._large_to_come:
                self._checker.no_more()

    def _take_checked(self) -> list[Stored]:
        """What was checked meanwhile; the first of what was wrong is the run's error."""
        if self._checker is None:
            return []
        right, error = self._checker.take()
        if error is not None:
            self._fail(error)
        return right

    def _corrupt(self, hash_: bytes, found: bytes) -> ObjectCorruptError:
        return ObjectCorruptError(hash=hash_.hex(), server=self._server, found=found.hex())
