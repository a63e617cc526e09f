"""A line on standard error that says how far an operation is, when a person is looking."""

import sys
import threading
import time
from types import TracebackType
from typing import Final

from smallstack.control.images import Progress

_EVERY: Final = 0.1
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class ProgressLine:
    """Shows a `Progress` on a terminal, nothing elsewhere. A context manager that clears it."""

    def __init__(self, verb: str) -> None:
        """``verb`` begins the line: "reading", "fetching"."""
        self.progress = Progress(changed=self._show)
        self._verb = verb
        self._visible = sys.stderr.isatty()
        self._shown_at = 0.0
        self._started = time.monotonic()
        self._width = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self.progress

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._width:
                sys.stderr.write("\r" + " " * self._width + "\r")
                sys.stderr.flush()
            self._visible = False

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._visible or now - self._shown_at < _EVERY:
                return
            self._shown_at = now
            line = self._line(progress, now - self._started)
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = max(self._width, len(line))

    def _line(self, progress: Progress, seconds: float) -> str:
        rate = shown_bytes(progress.file_bytes / seconds if seconds else 0)
        files = f"{progress.files}"
        size = shown_bytes(progress.file_bytes)
        if progress.total_files:
            files += f" of {progress.total_files}"
            size += f" of {shown_bytes(progress.total_bytes)}"
        line = f"{self._verb} {files} files, {size}, {rate}/s"
        if progress.uploaded:
            line += f"; {shown_bytes(progress.uploaded_bytes)} uploaded"
        return line


def shown_bytes(size: float) -> str:
    """A size for people: ``12.3 MiB``."""
    power = 0
    while size >= 1024 and power < len(_UNITS) - 1:
        size /= 1024
        power += 1
    return f"{size:.0f} B" if not power else f"{size:.1f} {_UNITS[power]}"
