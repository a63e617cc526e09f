"""The lines a create prints as it goes: time stamps as in the paper, progress while it waits."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TextIO


class Transcript:
    """Writes ``2026/01/31 10:02:07 text`` lines; on a terminal also how long the last one takes."""

    def __init__(self, stream: TextIO) -> None:
        """``stream`` is standard error: standard output carries the result alone."""
        self._stream = stream
        self._last = ""
        self._since = time.monotonic()
        self._shown = False

    def line(self, text: str) -> None:
        """One event, now."""
        self._clear()
        self._last, self._since = text, time.monotonic()
        stamp = time.strftime("%Y/%m/%d %H:%M:%S")
        print(f"{stamp} {text}", file=self._stream, flush=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the body waits, a terminal shows the seconds gone by since the last line."""
        ticker = asyncio.create_task(self._tick()) if self._stream.isatty() else None
        try:
            yield
        finally:
            if ticker:
                ticker.cancel()
            self._clear()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            waited = time.monotonic() - self._since
            if waited > 1:
                self._stream.write(f"\r{self._last} … {waited:.0f} s\x1b[K")
                self._stream.flush()
                self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
