"""Cuts a run of bytes into the objects it is made of and stores each as it ends.

Small objects that lie whole in the bytes at hand go straight into their files, many at a time and
on two processors; only large ones, and those that are cut, take the way of `Incoming`. A file made
so has its own name from the first byte on, so a kill may leave a part of it there: whoever opens
such a store again believes only what its index names, and checks what it does not.
"""

import errno
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from smallstack.objects.errors import ObjectCorruptError, ObjectSizeError
from smallstack.objects.files import write_objects
from smallstack.objects.index import Index
from smallstack.objects.store import IN_MEMORY, Incoming, ObjectStore, Stored
from smallstack.proto.kinds import Hash

ALONE: Final = 8
"""Objects below which a second thread costs more than it brings."""
_Part = tuple[bytes, int, int]
"""An object in a run of bytes: its digest, where it begins, how many bytes it has."""


class Intake:
    """Takes the bytes of ``objects`` (digest, size) in order; one thread at a time uses it.

    An object that is wrong ends the run: ``error`` says why, and nothing of it, or of what would
    have followed, is kept. What was whole before stays, and stands in the index. Where a file
    cannot be written, what else was whole in the same bytes stays too.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: Index | None,
        objects: Sequence[tuple[bytes, int]],
        server: str,
    ) -> None:
        """``index`` is told of what is stored; ``server`` is named in errors.

        Without an index the store is one that nobody opens again.
        """
        self.error: Exception | None = None
        self._store = store
        self._index = index
        self._server = server
        self._coming = iter(objects)
        self._incoming: Incoming | None = None
        self._left = 0
        self._second: ThreadPoolExecutor | None = None

    def feed(self, data: bytes) -> list[Stored]:
        """Take the next bytes; the objects that are whole, checked, stored and indexed now."""
        stored: list[Stored] = []
        if self.error is not None:
            return stored
        try:
            self._split(data, stored)
        except Exception as error:
            self.error = error
            self.abort()
        try:
            if self._index is not None:
                self._index.add(stored)
        except Exception as error:
            self.error = self.error or error
            for done in stored:
                self._store.delete(done.hash)
            return []
        return stored

    def abort(self) -> None:
        """Remove the object that is not whole; call it at the end as well."""
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None
        if self._second is not None:
            self._second.shutdown()
            self._second = None

    def _split(self, data: bytes, stored: list[Stored]) -> None:
        at, whole = 0, list[_Part]()
        while at < len(data):
            if self._incoming is None:
                hash_, size = self._next()
                if size <= min(IN_MEMORY, len(data) - at):
                    whole.append((hash_, at, size))
                    at += size
                    continue
                self._store_whole(data, whole, stored)
                whole = []
                self._left = size
                self._incoming = self._store.incoming(size, hash_, self._server)
            part = memoryview(data)[at : at + self._left]
            self._incoming.write(part)
            self._left -= len(part)
            at += len(part)
            if not self._left:
                stored.append(self._incoming.finish())
                self._incoming = None
        self._store_whole(data, whole, stored)

    def _next(self) -> tuple[bytes, int]:
        for hash_, size in self._coming:
            return hash_, size
        raise ObjectSizeError(hash="after the last one", server=self._server, found=1, size=0)

    def _store_whole(self, data: bytes, whole: list[_Part], stored: list[Stored]) -> None:
        """Check and write objects that lie whole in ``data``."""
        if len(whole) < ALONE:
            wrong = self._check(data, whole)
            results = self._write(data, whole[:wrong])
        else:
            if self._second is None:
                self._second = ThreadPoolExecutor(1, "intake")
            half = len(whole) // 2
            other = self._second.submit(self._check, data, whole[half:])
            wrong = self._check(data, whole[:half])
            if (found := other.result()) is not None and wrong is None:
                wrong = half + found
            rest = self._second.submit(self._write, data, whole[half:wrong])
            results = self._write(data, whole[: half if wrong is None else min(half, wrong)])
            results += rest.result()
        failure: Exception | None = None
        for (hash_, at, size), (keyed, error) in zip(whole, results, strict=False):
            try:
                if error == -errno.EEXIST:
                    stored.append(self._replace(hash_, data[at : at + size]))
                elif error:
                    with self._store.writing(size):
                        raise OSError(-error, "")
                else:
                    stored.append(Stored(Hash(hash_), size, keyed, True))
            except Exception as told:
                failure = failure or told
        if failure is not None:
            raise failure
        if wrong is not None:
            hash_, at, size = whole[wrong]
            content = hashlib.sha512(data[at : at + size]).hexdigest()
            raise ObjectCorruptError(hash=hash_.hex(), server=self._server, found=content)

    @staticmethod
    def _check(data: bytes, whole: list[_Part]) -> int | None:
        """The number of the first object that is not what its digest says."""
        view = memoryview(data)
        for number, (hash_, at, size) in enumerate(whole):
            if hashlib.sha512(view[at : at + size]).digest() != hash_:
                return number
        return None

    def _write(self, data: bytes, whole: list[_Part]) -> list[tuple[bytes, int]]:
        return write_objects(self._store.descriptor, self._store.flat, data, whole)

    def _replace(self, hash_: bytes, data: bytes) -> Stored:
        """A file of that name is there: it is compared, and replaced if it has other bytes."""
        with self._store.incoming(len(data), hash_, self._server) as incoming:
            incoming.write(data)
            return incoming.finish()
