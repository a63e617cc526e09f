"""Messages of the Logger service, which every daemon has, in the order of their wire fields.

``name`` is that of a log; a daemon has one, whose name is empty. Debug levels: -1 is none, and the
higher the number the more is told.
"""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import ClassVar

from smallstack.proto.kinds import Int16, Message, Uint8


class LoggerMessage(Message, kw_only=True):
    """A message of the Logger service."""

    go_package: ClassVar[str] = "logger"


class DebugRequest(LoggerMessage, kw_only=True):
    """Request of ``Logger.Debug``: the words of a line, and from which debug level on it shows."""

    args: list[str] = []
    name: str = ""
    level: Uint8 = 0
    """The line shows from this debug level on."""


class DebugResponse(LoggerMessage, kw_only=True):
    """Reply of ``Logger.Debug``: empty."""


class GetStackTraceRequest(LoggerMessage, kw_only=True):
    """Request of ``Logger.GetStackTrace``: empty."""


class GetStackTraceResponse(LoggerMessage, kw_only=True):
    """Reply of ``Logger.GetStackTrace``: text, of everything that runs or waits there."""

    data: bytes = b""


class PrintRequest(LoggerMessage, kw_only=True):
    """Request of ``Logger.Print``: the words of a line."""

    args: list[str] = []
    name: str = ""


class PrintResponse(LoggerMessage, kw_only=True):
    """Reply of ``Logger.Print``: empty."""


class SetDebugLevelRequest(LoggerMessage, kw_only=True):
    """Request of ``Logger.SetDebugLevel``."""

    name: str = ""
    level: Int16 = 0
    """-1: no debug lines."""


class SetDebugLevelResponse(LoggerMessage, kw_only=True):
    """Reply of ``Logger.SetDebugLevel``: empty."""


class WatchRequest(LoggerMessage, kw_only=True):
    """Request of ``Logger.Watch``: lines up to a debug level, of which expressions choose.

    Lines that match ``include_regex`` are sent (all, if it is empty), but for those that match
    ``exclude_regex``. The expressions are RE2's.
    """

    debug_level: Int16 = 0
    """-1: no debug lines."""
    exclude_regex: str = ""
    include_regex: str = ""
    name: str = ""


class WatchResponse(LoggerMessage, kw_only=True):
    """First reply of ``Logger.Watch``; unless it tells an error lines of text follow for ever."""

    error: str = ""
