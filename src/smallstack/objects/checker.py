"""Checks large objects as they come, in a thread of its own, several side by side.

One file alone is hashed at a third of the speed of eight: the thread waits until it has as many, or
many bytes, or no more come.
"""

import errno
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from smallstack.objects.pack import Digests
from smallstack.objects.store import ObjectStore, Stored, Unchecked

WAITING: Final = 240
"""Objects that may wait beside those being read, without a descriptor. Whoever adds one more waits
as well, and reads nothing meanwhile: with 56 of them a core was idle for a tenth of a fetch."""
WAITING_BYTES: Final = 256 << 20
"""With so many bytes to read the thread begins, however few the objects are."""
PASSES: Final = 16
"""Parts of each file read before it is looked whether others have come."""


class Checker:
    """Gives the right ones their names; one thread at a time uses it. `close` has to follow."""

    def __init__(self, store: ObjectStore, corrupt: Callable[[bytes, bytes], Exception]) -> None:
        """``corrupt`` makes the error for an object from its digest and the one it has."""
        self._store = store
        self._corrupt = corrupt
        self._coming: queue.Queue[Unchecked | None] = queue.Queue(WAITING)
        self._files: Digests[Unchecked] = Digests()
        self._ended = False
        self._over = False  # the thread's own: it has seen the end
        self._lock = threading.Lock()
        self._reading: list[Unchecked] = []
        self._right: list[Stored] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)
        self._thread.start()

    def add(self, one: Unchecked) -> None:
        """Have an object checked of which all bytes are there; waits while too many do.

        Raises StoreError.
        """
        one.rest()
        self._coming.put(one)

    def no_more(self) -> None:
        """Nothing is added any more, so that the last ones need not wait for others."""
        if not self._ended:
            self._ended = True
            self._coming.put(None)

    def close(self) -> None:
        """Wait until all are checked."""
        self.no_more()
        self._thread.join()

    def take(self) -> tuple[list[Stored], Exception | None]:
        """What was found right since this was last asked, and the first error there ever was."""
        with self._lock:
            right, self._right = self._right, []
            return right, self._error

    def _run(self) -> None:
        try:
            self._check_all()
        except BaseException as failure:  # or else whoever adds would wait for ever
            with self._lock:
                self._error = self._error or RuntimeError(f"the checker ended: {failure!r}")
            for one in self._reading:
                one.abort()
            while not self._over:
                if (one_more := self._next(wait=True)) is not None:
                    one_more.abort()

    def _check_all(self) -> None:
        files, reading = self._files, self._reading
        while not self._over or files.reading:
            while not self._over and not files.full:
                one = self._next(wait=sum(one.size for one in reading) < WAITING_BYTES)
                if one is None:
                    break
                reading.append(one)
                try:
                    one.reopen()
                except OSError as missing:
                    self._end(one, b"", b"", b"", -(missing.errno or errno.EIO))
                    reading.remove(one)
                    continue
                files.add(one.descriptor, one.size, one)
            for one, sha512, blake3, sum_, error in files.read(PASSES):
                self._end(one, sha512, blake3, sum_, error)
                reading.remove(one)

    def _next(self, *, wait: bool) -> Unchecked | None:
        """The next object, None when there is none as yet or any more (``_over``)."""
        try:
            one = self._coming.get(block=wait)
        except queue.Empty:
            return None
        self._over = one is None
        return one

    def _end(self, one: Unchecked, sha512: bytes, blake3: bytes, sum_: bytes, error: int) -> None:
        try:
            with self._store.writing(one.size):
                if error:
                    raise OSError(-error, os.strerror(-error))
                if sha512 != one.hash:
                    raise self._corrupt(one.hash, sha512)
                stored = one.commit(blake3, sum_)
            with self._lock:
                self._right.append(stored)
        except Exception as failure:
            with self._lock:
                self._error = self._error or failure
        finally:
            one.abort()
