"""The Logger service: a daemon's log from afar, how much it tells, and what the daemon is doing.

::

    any thread ─► logging ─┬─► the daemon's own handlers, from the level of SetDebugLevel on
                           └─► a _Watcher for each Watch: own level, expressions, bounded queue
                                    └─► wakes the loop ─► its connection

A watcher that is slower than the log misses lines, and is told how many. Its expressions are RE2's,
in which no expression takes long on any line, and which upstream's clients expect.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

import re2  # type: ignore[import-untyped]

from smallstack.daemon import stacks
from smallstack.daemon.errors import (
    ExpressionError,
    LongExpressionError,
    ManyWatchersError,
    UnknownLogError,
)
from smallstack.proto import logger as proto
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError
from smallstack.telemetry.log import ROOT, Lines, set_level, threshold

MAX_WATCHERS: Final = 16
MAX_WAITING: Final = 256 * 1024
"""Bytes of lines that a watcher has not taken yet."""
MAX_LINE: Final = 4096
"""Bytes of one line as a watcher or a caller of Print has it."""
MAX_EXPRESSION: Final = 1024
EXPRESSION_MEMORY: Final = 1 << 20
"""Bytes that matching one expression may use."""

_log = logging.getLogger("smallstack.logger")


class LoggerService:
    """The service, over the log of this process; `close` puts back what callers changed."""

    def __init__(self) -> None:
        self._root = logging.getLogger(ROOT)
        self._before = self._root.level
        self._level = self._root.getEffectiveLevel()
        self._quiet = max(self._level, logging.INFO)
        self._watchers: set[_Watcher] = set()

    def handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`."""
        return {
            "Debug": self.debug,
            "GetStackTrace": self.get_stack_trace,
            "Print": self.print,
            "SetDebugLevel": self.set_debug_level,
            "Watch": self.watch,
        }

    def close(self) -> None:
        """After the last call."""
        self._level = self._before or logging.WARNING
        self._apply()
        self._root.setLevel(self._before)

    async def debug(self, call: Call, request: proto.DebugRequest) -> proto.DebugResponse:
        """Write a line that shows from a debug level on."""
        _check(request.name)
        text = _text(request.args)
        _log.log(
            threshold(request.level), "Logger.Debug(%d) by %s: %s", request.level, call.peer, text
        )
        return proto.DebugResponse()

    async def print(self, call: Call, request: proto.PrintRequest) -> proto.PrintResponse:
        """Write a line."""
        _check(request.name)
        _log.info("Logger.Print() by %s: %s", call.peer, _text(request.args))
        return proto.PrintResponse()

    async def set_debug_level(
        self, call: Call, request: proto.SetDebugLevelRequest
    ) -> proto.SetDebugLevelResponse:
        """How much the daemon's own log tells from now on; below 0: as it was told at its start."""
        _check(request.name)
        _log.info("Logger.SetDebugLevel(%d) by %s", request.level, call.peer)
        self._level = threshold(request.level) if request.level >= 0 else self._quiet
        self._apply()
        return proto.SetDebugLevelResponse()

    async def get_stack_trace(
        self, call: Call, request: proto.GetStackTraceRequest
    ) -> proto.GetStackTraceResponse:
        """Where everything is that runs or waits."""
        _log.info("Logger.GetStackTrace() by %s", call.peer)
        text = await asyncio.to_thread(stacks.everything, asyncio.get_running_loop())
        return proto.GetStackTraceResponse(data=text.encode())

    async def watch(self, call: Call) -> None:
        """The log as it goes on, until the caller goes away."""
        conn = call.conn
        request = await conn.decode(proto.WatchRequest)
        try:
            watcher = self._watcher(request)
        except SmallStackError as error:
            conn.encode(proto.WatchResponse(error=str(error)))
            return
        self._watchers.add(watcher)
        self._root.addHandler(watcher)
        self._apply()
        try:
            conn.encode(proto.WatchResponse())
            await conn.flush()
            # Also the first line that the watcher gets: from here on it misses nothing.
            _log.info("Logger.Watch(%d) by %s", request.debug_level, call.peer)
            await conn.while_connected(watcher.send(call))
        finally:
            self._root.removeHandler(watcher)
            self._watchers.discard(watcher)
            self._apply()
            re2.purge()  # it keeps every expression there ever was

    def _watcher(self, request: proto.WatchRequest) -> "_Watcher":
        _check(request.name)
        if len(self._watchers) >= MAX_WATCHERS:
            raise ManyWatchersError(count=MAX_WATCHERS)
        level = threshold(request.debug_level) if request.debug_level >= 0 else logging.INFO
        return _Watcher(
            level, _expression(request.include_regex), _expression(request.exclude_regex)
        )

    def _apply(self) -> None:
        """The daemon's own level to its handlers, and to the logger what any of all wants."""
        for handler in self._root.handlers:
            if not isinstance(handler, _Watcher):
                set_level(handler, self._level)
        self._root.setLevel(min([self._level, *(watcher.level for watcher in self._watchers)]))


class _Watcher(logging.Handler):
    """Lines from any thread, kept until its connection takes them."""

    def __init__(self, level: int, include: Any, exclude: Any) -> None:
        super().__init__(level)
        self.setFormatter(Lines(journal=False, traceback=level <= logging.DEBUG))
        self._include = include
        self._exclude = exclude
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._guard = threading.Lock()
        self._waiting: list[bytes] = []
        self._size = 0
        self._missed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's line if it is one that was asked for."""
        try:
            self._keep(self.format(record).encode("utf-8", "backslashreplace")[:MAX_LINE])
        except Exception:  # whoever logs must not suffer from who listens
            self.handleError(record)

    def _keep(self, line: bytes) -> None:
        if self._include is not None and not self._include.search(line):
            return
        if self._exclude is not None and self._exclude.search(line):
            return
        with self._guard:
            if self._size + len(line) > MAX_WAITING:
                self._missed += 1
                return
            self._waiting.append(line + b"\n")
            self._size += len(line) + 1
            first = len(self._waiting) == 1
        if first:
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def send(self, call: Call) -> None:
        """Send lines as they come, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for data in self._take():
                call.conn.write(data)
            await call.conn.flush()

    def _take(self) -> Iterator[bytes]:
        with self._guard:
            waiting, missed = self._waiting, self._missed
            self._waiting, self._size, self._missed = [], 0, 0
        yield b"".join(waiting)
        if missed:
            yield b"(%d lines are missing here: they came faster than they were taken)\n" % missed


def _check(name: str) -> None:
    if name:
        raise UnknownLogError(name=name[:64])


def _text(words: list[str]) -> str:
    """Words of a caller as one line."""
    text = " ".join(words)[:MAX_LINE]
    return "".join(char if char.isprintable() else "?" for char in text)


def _expression(pattern: str) -> Any:
    """The expression made ready, None for an empty one."""
    if not pattern:
        return None
    if len(pattern) > MAX_EXPRESSION:
        raise LongExpressionError(limit=MAX_EXPRESSION)
    options = re2.Options()
    options.max_mem = EXPRESSION_MEMORY
    options.log_errors = False
    options.never_capture = True
    try:
        return re2.compile(pattern.encode("utf-8", "surrogateescape"), options)
    except re2.error as error:
        raise ExpressionError(pattern=pattern, detail=_detail(error)) from None


def _detail(error: Exception) -> str:
    detail = error.args[0]
    return detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
