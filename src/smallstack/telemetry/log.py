"""Logging as every daemon and tool does it: one line per event on one stream.

Rooms log by ``logging.getLogger("smallstack.<room>")``. Under systemd the time is left out (the
journal has its own) and the level is written as the ``<n>`` prefix that sd-daemon(3) describes.
"""

import logging
import os
import sys
import time
from typing import TextIO

_SYSLOG = {logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
ROOT = "smallstack"
"""The logger above those of all rooms."""


def threshold(debug_level: int) -> int:
    """The level of `logging` from which on lines of a debug level are logged; 0 is DEBUG itself.

    Higher ones are for what is told more often, down to 1 for debug level 9 and all above.
    """
    return max(1, logging.DEBUG - debug_level)


class Lines(logging.Formatter):
    """``2026-01-02T03:04:05.678Z INFO network: text``; an exception adds its class, not lines."""

    def __init__(self, journal: bool, traceback: bool) -> None:
        super().__init__()
        self.journal = journal
        self.traceback = traceback

    def format(self, record: logging.LogRecord) -> str:
        """A record's line, without its end; more of them when there is a traceback."""
        room = record.name.removeprefix("smallstack.")
        text = f"{room}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {error}"
            if self.traceback:
                text += "\n" + self.formatException(record.exc_info)
        text = text.replace("\r", "\\r")
        debugging = record.levelno <= logging.DEBUG
        if self.journal:
            return "".join(
                f"<{7 if debugging else _SYSLOG.get(record.levelno, 5)}>{line}\n"
                for line in text.split("\n")
            ).removesuffix("\n")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = "DEBUG" if debugging else record.levelname
        return f"{stamp}.{int(record.msecs):03d}Z {level} {text}"


def set_level(handler: logging.Handler, level: int) -> None:
    """Let a handler write what has at least ``level``, with tracebacks when that is DEBUG."""
    handler.setLevel(level)
    if isinstance(handler.formatter, Lines):
        handler.formatter.traceback = level <= logging.DEBUG


def setup(level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send the project's log lines of at least ``level`` to ``stream`` (default: stderr).

    Tracebacks are written at level DEBUG only. Calling it again replaces what was set.
    """
    resolved = (
        logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    )
    if resolved is None:
        raise ValueError(f"unknown log level {level!r}: use debug, info, warning or error")
    handler = logging.StreamHandler(stream or sys.stderr)
    journal = stream is None and bool(os.environ.get("JOURNAL_STREAM"))
    handler.setFormatter(Lines(journal, traceback=resolved <= logging.DEBUG))
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(resolved)
    root.propagate = False
