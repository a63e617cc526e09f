"""Diff streams: written from two disks, read back from any file or pipe. See csrc/diff_stream.h.

A stream that was cut off needs not begin again: whoever has the first N blocks asks for the rest,
and gives the chain that its last whole frame left. Writer and reader hold one frame (1 MiB) for
each thread, whatever the disks' size.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Final

from smallstack.volumes.qcow2.chain import Disk, Files
from smallstack.volumes.qcow2.codec import (
    FRAME,
    HEADER,
    TRAILER,
    Decoder,
    Encoder,
    NotAStreamError,
    Plan,
    next_chain,
)
from smallstack.volumes.qcow2.compare import Extents
from smallstack.volumes.qcow2.errors import StreamDamagedError, StreamEndsError

DEFAULT_LEVEL: Final = 1
THREADS: Final = min(2, os.cpu_count() or 1)
_MAGIC: Final = b"SSDIFF"


def plan_stream(old: Disk, new: Disk, extents: Extents, *, old_digests: bool = True) -> Plan:
    """What a stream from ``old`` to ``new`` consists of.

    With ``old_digests`` it also says what each block was before, so that it is refused by a disk
    that is not the old one; that costs the reading of the old blocks.
    """
    fingerprint = hashlib.blake2b(digest_size=32)
    for disk in (old, new):
        for layer in disk.layers:
            if layer.image is not None and layer.snapshot >= 0:
                about: object = layer.image.snapshots()[layer.snapshot]
            else:
                status = os.fstat(layer.fd)
                about = (layer.size, status.st_size, status.st_mtime_ns)
            fingerprint.update(repr(about).encode())
        fingerprint.update(b"/")
    return Plan.plan(extents, old.size, new.size, fingerprint.digest(), old_digests=old_digests)


def write_stream(
    files: Files,
    old: Disk,
    new: Disk,
    plan: Plan,
    out: BinaryIO,
    *,
    level: int = DEFAULT_LEVEL,
    first_block: int = 0,
    chain: bytes | None = None,
    threads: int = THREADS,
) -> int:
    """Write the stream, or from ``first_block`` (a frame's) on with the ``chain`` before it.

    ``level`` is zstd's. Returns the bytes written. Raises the classes of ``errors`` for a disk that
    cannot be read, and OSError for ``out``.
    """
    head = plan.head(first_block, chain)
    out.write(head)
    written = len(head)
    value = plan.first_chain
    for frame, digests in _frames(files, old, new, plan, level, first_block, threads):
        out.write(frame)
        written += len(frame)
        value = next_chain(value, digests)
    out.write(plan.trailer(value))
    return written + TRAILER


def _frames(
    files: Files, old: Disk, new: Disk, plan: Plan, level: int, first_block: int, threads: int
) -> Iterator[tuple[bytes, bytes]]:
    """Frames in order; each thread reads by images of its own."""
    starts = range(first_block, plan.blocks, plan.frame_blocks)
    encoders = [
        Encoder(plan, files.again(old).view, files.again(new).view, level)
        for _ in range(max(1, min(threads, len(starts))))
    ]
    idle = deque(encoders)
    waiting: deque[tuple[Encoder, Future[tuple[bytes, bytes]]]] = deque()
    with ThreadPoolExecutor(len(encoders)) as pool:
        try:
            for start in starts:
                if not idle:
                    encoder, done = waiting.popleft()
                    result = done.result()
                    idle.append(encoder)
                    waiting.append((encoder, pool.submit(idle.popleft().frame, start)))
                    yield result
                    continue
                encoder = idle.popleft()
                waiting.append((encoder, pool.submit(encoder.frame, start)))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, done in waiting:
                done.cancel()


@dataclass(frozen=True)
class Frame:
    """A frame of a stream as it was read; ``data`` unpacks and checks it."""

    first: int
    places: list[tuple[int, int]]
    head: bytes
    body: bytes
    digests: bytes
    """Of the new blocks, then (if the plan says so) of the old, 32 bytes each."""

    def old_digests(self) -> list[bytes]:
        """Those of the old blocks."""
        old = self.digests[len(self.places) * 32 :]
        return [old[i : i + 32] for i in range(0, len(old), 32)]

    def new_digests(self) -> list[bytes]:
        """Those of the new blocks."""
        new = self.digests[: len(self.places) * 32]
        return [new[i : i + 32] for i in range(0, len(new), 32)]


class StreamReader:
    """Reads a stream from ``file``, which can be a pipe; ``name`` is for messages.

    Raises StreamDamagedError and StreamEndsError.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        try:
            header = self._read(HEADER, 0)
            if not header.startswith(_MAGIC):
                raise NotAStreamError("it does not begin as what `smallstack volume diff` writes")
            self.plan = Plan.read(header + self._read_table(Plan.head_length(header) - HEADER))
        except NotAStreamError as error:
            raise StreamDamagedError(path=name, detail=str(error)) from None
        self._decoder = Decoder(self.plan)
        self.chain = self.plan.first_chain
        self.next_block = self.plan.first_block

    def frames(self, *, bodies: bool = True) -> Iterator[Frame]:
        """Every frame in order, then the trailer, checked.

        With ``bodies=False`` only heads and digests are read, which takes a file that can seek.
        """
        while self.next_block < self.plan.blocks:
            first = self.next_block
            head = self._read(FRAME, first)
            try:
                digests, stored = self.plan.frame_lengths(first, head)
            except NotAStreamError as error:
                raise self.damaged(error) from None
            body = self._read(digests + stored if bodies else digests, first)
            if not bodies:
                self._file.seek(stored, os.SEEK_CUR)
            yield Frame(first, self.plan.places(first), head, body, body[:digests])
            self.chain = next_chain(self.chain, body[:digests])
            self.next_block = min(first + self.plan.frame_blocks, self.plan.blocks)
        try:
            self.plan.check_trailer(self._read(TRAILER, self.next_block), self.chain)
        except NotAStreamError as error:
            raise self.damaged(error) from None

    def data(self, frame: Frame) -> bytes:
        """The blocks of a frame, one after the other, each checked against its digest."""
        try:
            return self._decoder.data(frame.first, frame.head, frame.body)
        except NotAStreamError as error:
            raise self.damaged(error) from None

    def damaged(self, error: NotAStreamError) -> StreamDamagedError:
        """The error for what is wrong at the present block."""
        detail = f"at block {self.next_block} {error}"
        return StreamDamagedError(path=self.name, detail=detail)

    def _read(self, length: int, block: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise StreamEndsError(path=self.name, block=block)
        return data

    def _read_table(self, length: int) -> bytes:
        """Piecewise: a header that lies about the table's length costs no memory."""
        pieces = []
        while length > 0:
            pieces.append(self._read(min(length, 1 << 20), 0))
            length -= len(pieces[-1])
        return b"".join(pieces)
