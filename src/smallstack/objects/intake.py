"""Cuts a run of bytes into the objects it is made of and stores each as it ends."""

from collections.abc import Sequence

from smallstack.objects.errors import ObjectSizeError
from smallstack.objects.index import Index
from smallstack.objects.store import Incoming, ObjectStore, Stored


class Intake:
    """Takes the bytes of ``objects`` (digest, size) in order; one thread at a time uses it.

    An object that is wrong ends the run: ``error`` says why, and nothing of it, or of what would
    have followed, is kept. What was whole before stays, and stands in the index.
    """

    def __init__(
        self,
        store: ObjectStore,
        index: Index | None,
        objects: Sequence[tuple[bytes, int]],
        server: str,
    ) -> None:
        """``index`` is told of what is stored; ``server`` is named in errors."""
        self.error: Exception | None = None
        self._store = store
        self._index = index
        self._server = server
        self._coming = iter(objects)
        self._incoming: Incoming | None = None
        self._left = 0

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
        """Remove the object that is not whole."""
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None

    def _split(self, data: bytes, stored: list[Stored]) -> None:
        view = memoryview(data)
        while view:
            if self._incoming is None:
                hash_, self._left = self._next()
                self._incoming = self._store.incoming(self._left, hash_, self._server)
            part = view[: self._left]
            self._incoming.write(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left:
                stored.append(self._incoming.finish())
                self._incoming = None

    def _next(self) -> tuple[bytes, int]:
        for hash_, size in self._coming:
            return hash_, size
        raise ObjectSizeError(hash="after the last one", server=self._server, found=1, size=0)
