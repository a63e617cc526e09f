"""Credentials that are made again once their files have changed.

Whoever needs them asks for `Renewable.fresh`, at every handshake: that looks at the files' names,
times and sizes (some microseconds), and reads them in a thread only when one is another than
before. Files are replaced one after the other, and not always well: as long as they do not make
credentials, those that were good stay in use, and the next change is waited for.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from smallstack.telemetry.errors import describe

C = TypeVar("C")
_Look = tuple[tuple[int, ...] | None, ...]
_log = logging.getLogger("smallstack.identity")


class Renewable(Generic[C]):
    """Credentials of one kind, by their files."""

    def __init__(
        self,
        make: Callable[[], C],
        places: Sequence[Path],
        told: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """``make`` reads ``places``, in any thread; ``told`` hears whether they could be renewed.

        Nothing is read yet: see `renew` and `fresh`.
        """
        self._make = make
        self._places = tuple(places)
        self._told = told
        self._seen: _Look | None = None
        self._current: C | None = None
        self._failure: Exception | None = None
        self._lock = asyncio.Lock()

    @classmethod
    def fixed(cls, credentials: C) -> "Renewable[C]":
        """Credentials of no files: they stay what they are."""
        made = cls(lambda: credentials, ())
        made.renew()
        return made

    @property
    def current(self) -> C:
        """What was good last. Raises what has kept it from ever being so."""
        if self._current is None:
            if self._failure is None:
                raise RuntimeError("not read yet")
            raise self._failure.with_traceback(None)  # it is raised again and again
        return self._current

    async def fresh(self) -> C:
        """What the files make now, or else what was good last.

        Raises what ``make`` raises when nothing ever was.
        """
        if _look(self._places) != self._seen:
            async with self._lock:
                look = _look(self._places)
                if look != self._seen:
                    self._take(look, *await asyncio.to_thread(self._try))
        return self.current

    def renew(self) -> C:
        """Read the files again, changed or not. Blocks for some milliseconds.

        Raises what ``make`` raises; what was good stays in use.
        """
        look = _look(self._places)
        made, failure = self._try()
        self._take(look, made, failure)
        if failure is not None:
            raise failure
        return self.current

    def _try(self) -> tuple[C | None, Exception | None]:
        try:
            return self._make(), None
        except Exception as error:  # whatever it is, nobody may be kept out by it
            return None, error

    def _take(self, look: _Look, made: C | None, failure: Exception | None) -> None:
        again, self._seen, self._failure = self._seen is not None, look, failure
        if made is not None:
            self._current = made
        if not again:
            return
        self._told(made is not None)
        if made is not None:
            _log.info("new certificates are in use: %s", ", ".join(map(str, self._places)))
        elif failure is not None and self._current is not None:
            _log.error("%s; the former certificates stay in use", describe(failure))


def _look(places: Sequence[Path]) -> _Look:
    """What tells a file from the one that was there before; None where there is none."""
    found: list[tuple[int, ...] | None] = []
    for place in places:
        try:
            stat = place.stat()
        except OSError:
            found.append(None)
        else:
            found.append(
                (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            )
    return tuple(found)
