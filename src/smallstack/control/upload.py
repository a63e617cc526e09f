"""Carries contents from a build, which runs in a thread, to an object server.

::

    thread   sink.add: SHA-512 ──► batch ──► bounded queue
    loop     queue ──► CheckObjects: which are missing? ──► AddObjects, those only

A small content waits in memory, a large one in its file (or, from an archive, in an unnamed
temporary file), so what is kept is bounded whatever the image's size.
"""

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from io import FileIO
from pathlib import Path
from typing import Final, cast

from smallstack.client.objectserver import NewObject, ObjectServerClient
from smallstack.images.build import chunks
from smallstack.images.decompress import Readable
from smallstack.telemetry.errors import SmallStackError

SMALL: Final = 1 << 20
BATCH_BYTES: Final = 4 << 20
BATCH_OBJECTS: Final = 128
_UNNAMED: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
BATCH_FILES: Final = 16
"""Large contents that keep a file open at a time, in each of some three batches."""


class UploadEndedError(SmallStackError):
    """the upload has ended"""


class _Content:
    """One object on its way: bytes, or a descriptor to be closed."""

    def __init__(self, digest: bytes, size: int, data: bytes, fd: int = -1) -> None:
        self.digest = digest
        self.size = size
        self._data = data
        self._fd = fd

    def new_object(self) -> NewObject:
        where = self._data if self._fd < 0 else Path(f"/proc/self/fd/{self._fd}")
        return NewObject(where, self.digest)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class UploadSink:
    """A `Sink` whose contents go to a server. A context manager on the loop's side.

    ``checker`` and ``adder`` are two connections to one server; without a checker everything is
    sent. Leave the block only when the build is over: its end waits until everything is there.
    """

    def __init__(self, checker: ObjectServerClient | None, adder: ObjectServerClient) -> None:
        self.uploaded = 0
        self.uploaded_bytes = 0
        self._checker = checker
        self._adder = adder
        self._seen: set[bytes] = set()
        self._batch: list[_Content] = []
        self._batch_bytes = 0
        self._batch_files = 0
        self._queue: asyncio.Queue[list[_Content]] = asyncio.Queue(maxsize=1)
        self._loop = asyncio.get_running_loop()
        self._sending: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> "UploadSink":
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left, unless the block failed; raises what sending raised."""
        sending = self._sending
        assert sending is not None
        try:
            if kind is None:
                await self._put(self._batch)
                await self._put([])
                await sending
        finally:
            self._ended = True
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()
            for content in self._batch:
                content.close()

    def add(self, file: Readable, size: int) -> bytes:
        """See `Sink`; in the build's thread. Raises what became of the upload."""
        self.check()
        content = _small(file, size) if size <= SMALL else _large(file, size, self.check)
        if content.digest in self._seen:
            content.close()
            return content.digest
        self._seen.add(content.digest)
        self._batch.append(content)
        self._batch_bytes += size if size <= SMALL else 0
        self._batch_files += size > SMALL
        if (
            self._batch_bytes >= BATCH_BYTES
            or len(self._batch) >= BATCH_OBJECTS
            or self._batch_files >= BATCH_FILES
        ):
            batch, self._batch = self._batch, []
            self._batch_bytes = self._batch_files = 0
            asyncio.run_coroutine_threadsafe(self._put(batch), self._loop).result()
        return content.digest

    def check(self) -> None:
        """Raises what ended the sending, if it has ended."""
        sending = self._sending
        if sending is not None and sending.done() and not sending.cancelled():
            error = sending.exception()
            if error is not None:
                raise error
        if self._ended:
            raise UploadEndedError

    async def _put(self, batch: list[_Content]) -> None:
        """Queue a batch, unless sending has ended."""
        sending = self._sending
        assert sending is not None
        putting = asyncio.ensure_future(self._queue.put(batch))
        await asyncio.wait([putting, sending], return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            for content in batch:
                content.close()
            self.check()
            raise UploadEndedError

    async def _send(self) -> None:
        batches = self._missing()
        try:
            await self._adder.add_objects(batches)
        finally:
            await batches.aclose()
            while not self._queue.empty():
                for content in self._queue.get_nowait():
                    content.close()

    async def _missing(self) -> AsyncGenerator[NewObject, None]:
        while batch := await self._queue.get():
            try:
                sizes = [0] * len(batch)
                if self._checker is not None:
                    digests = [content.digest for content in batch]
                    sizes = await self._checker.check_objects(digests)
                for content, size in zip(batch, sizes, strict=True):
                    if size != content.size:
                        yield content.new_object()
                        self.uploaded += 1
                        self.uploaded_bytes += content.size
            finally:
                for content in batch:
                    content.close()


def _small(file: Readable, size: int) -> _Content:
    data = b"".join(chunks(file, size))
    return _Content(hashlib.sha512(data).digest(), size, data)


def _large(file: Readable, size: int, check: Callable[[], None]) -> _Content:
    """Its digest, and a descriptor from which it can be read again."""
    digest = hashlib.sha512()
    with contextlib.ExitStack() as stack:
        spool: FileIO | None = None
        if not isinstance(file, FileIO):
            directory = tempfile.gettempdir()
            spool = stack.enter_context(FileIO(os.open(directory, _UNNAMED, 0o600), "r+"))
        for chunk in chunks(file, size):
            check()
            digest.update(chunk)
            if spool is not None:
                spool.write(chunk)
        kept = spool if spool is not None else cast(FileIO, file)
        return _Content(digest.digest(), size, b"", os.dup(kept.fileno()))
