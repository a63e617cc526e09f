"""The serial console: what a guest writes is logged, bounded, on disk; one client at a time joins.

QEMU is the server on ``serial0.sock`` and the agent its only client, connected before the guest
runs; after a restart the agent connects again, and only what was said in between is lost. Every
byte goes into the log, also while a client is attached.

The log keeps the first 64 KiB and at least the last 256 KiB, in files named by the offset of
their first byte in the whole output, so that nothing has to be recorded beside them::

    console/0000000000000000.log    the head: bytes 0 … 65535
    console/0000000000851968.log    a full segment of 256 KiB
    console/0000000001114112.log    the segment being written

A client that does not read loses what it is too slow for, and is told; the guest never waits.
"""

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

from smallstack.machine.errors import ConsoleBusyError, ConsoleClosedError

HEAD_BYTES = 64 * 1024
SEGMENT_BYTES = 256 * 1024
CLIENT_BYTES = 1024 * 1024
"""What is kept for a client that does not read."""
DETACH_KEY = b"\x1d"
"""Ctrl-], as telnet has it: the key with which a client's terminal leaves the console."""
DETACH_KEY_NAME = "Ctrl-]"


class LogText(NamedTuple):
    """A log as it was read: the first bytes, how many are left out, and the last ones."""

    head: bytes
    omitted: int
    tail: bytes

    def joined(self) -> bytes:
        """All of it, with a line in place of what is left out."""
        if not self.omitted:
            return self.head + self.tail
        return self.head + f"\n[{self.omitted} bytes left out]\n".encode() + self.tail


class ConsoleLog:
    """The bounded log in one directory. An instance appends; `read_log` needs none."""

    def __init__(self, directory: Path) -> None:
        """Goes on with the log in ``directory``, which is made if it is missing."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._segments = _segments(directory)
        self._fd = -1
        self._room = 0
        self.total = 0
        """Bytes written by the guest, as far as they reached the log."""
        self.failed: OSError | None = None
        """The last error of the disk; what it was about is missing from the log."""
        if self._segments:
            start = self._segments[-1]
            path = directory / _name(start)
            self.total = start + path.stat().st_size
            self._room = max(0, start + _capacity(start) - self.total)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, data: bytes) -> None:
        """Write ``data``; an error of the disk is kept in ``failed`` and loses it, no more."""
        view = memoryview(data)
        try:
            while view:
                if not self._room:
                    self._next_segment()
                written = os.write(self._fd, view[: self._room])
                self._room -= written
                self.total += written
                view = view[written:]
        except OSError as error:
            self.failed = error

    def close(self) -> None:
        """Close the file; the log stays on disk."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._room = 0

    def _next_segment(self) -> None:
        path = self._directory / _name(self.total)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        self.close()
        self._fd = fd
        self._room = _capacity(self.total)
        self._segments.append(self.total)
        while len(self._segments) > 3:
            (self._directory / _name(self._segments.pop(1))).unlink(missing_ok=True)


def read_log(directory: Path) -> LogText:
    """What is kept of the log: the head, and the last 256 KiB behind it."""
    starts = _segments(directory)
    if not starts:
        return LogText(b"", 0, b"")
    parts = {start: (directory / _name(start)).read_bytes() for start in starts}
    head = parts.pop(0, b"")
    behind = b"".join(parts[start] for start in sorted(parts))
    end = max((start + len(data) for start, data in parts.items()), default=len(head))
    tail = behind[-SEGMENT_BYTES:]
    return LogText(head, end - len(tail) - len(head), tail)


def rotate_log(directory: Path) -> None:
    """Set the log of the boot before aside, as ``<directory>.old``, and forget an older one."""
    old = directory.with_name(directory.name + ".old")
    for path in old.glob("*.log") if old.is_dir() else ():
        path.unlink()
    if directory.is_dir():
        directory.replace(old)


def _segments(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(path.stem) for path in directory.glob("*.log") if path.stem.isdecimal())


def _name(start: int) -> str:
    return f"{start:016d}.log"


def _capacity(start: int) -> int:
    return HEAD_BYTES if start == 0 else SEGMENT_BYTES


class Session:
    """One client at the console: raw bytes both ways, until either side closes."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._buffer = bytearray()
        self._lost = 0
        self._filled = asyncio.Event()
        self._ended = False

    async def read(self) -> bytes:
        """What the guest has written since; waits for the first byte; b"" when it has ended."""
        while not self._buffer and not self._lost and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._lost:
            data += f"\r\n[{self._lost} bytes lost: read too slowly]\r\n".encode()
            self._lost = 0
        return data

    async def write(self, data: bytes) -> None:
        """Type at the guest; waits while it does not read. Raises ConsoleClosedError."""
        if self._ended:
            raise ConsoleClosedError()
        await self._console.type_in(data)

    def close(self) -> None:
        """Leave; the console is free for the next one. A waiting `read` returns b""."""
        self._console.leave(self)
        self.end()

    def deliver(self, data: bytes) -> None:
        """Called by the console with what the guest wrote."""
        room = CLIENT_BYTES - len(self._buffer)
        self._buffer += data[:room]
        self._lost += max(0, len(data) - room)
        self._filled.set()

    def end(self) -> None:
        """Called by the console when there is nothing more to come."""
        self._ended = True
        self._filled.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Console(asyncio.Protocol):
    """The agent's end of ``serial0.sock``."""

    def __init__(self, log: ConsoleLog) -> None:
        self.log = log
        self.first_byte_ns: int | None = None
        """When the guest's first byte arrived, by time.monotonic_ns."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clock = asyncio.get_running_loop().time
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    def attach(self) -> Session:
        """Join; raises ConsoleBusyError while another is there, ConsoleClosedError at the end."""
        if self._transport is None:
            raise ConsoleClosedError()
        if self._session is not None:
            raise ConsoleBusyError()
        self._session = Session(self)
        return self._session

    async def type_in(self, data: bytes) -> None:
        """Used by a session: write to the guest, at its pace."""
        if self._transport is None:
            raise ConsoleClosedError()
        self._transport.write(data)
        await self._may_write.wait()

    def leave(self, session: Session) -> None:
        """Used by a session that closes."""
        if self._session is session:
            self._session = None

    def close(self) -> None:
        """Hang up; the log ends with what has arrived."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's own call."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """asyncio's own call."""
        if self.first_byte_ns is None:
            self.first_byte_ns = int(self._clock() * 1e9)
        self.log.append(data)
        if self._session is not None:
            self._session.deliver(data)

    def pause_writing(self) -> None:
        """asyncio's own call."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """asyncio's own call."""
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's own call."""
        self._transport = None
        self._may_write.set()
        self.log.close()
        if self._session is not None:
            self._session.end()
            self._session = None
        if not self.closed.done():
            self.closed.set_result(None)
