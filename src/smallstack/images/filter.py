"""Filters: which paths of a machine an image leaves alone, and which a build leaves out.

A filter is a list of regular expressions, each anchored at its start only: ``/etc/foo`` also
matches ``/etc/foobar``; write ``/etc/foo$`` for one path, ``/tmp(|/.*)$`` for a tree. A line ``!``
turns the whole filter round. No filter at all means a sparse image, an empty one full coverage.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from smallstack.images.errors import FilterError
from smallstack.proto.image import Filter
from smallstack.telemetry.errors import describe

MAX_BYTES = 1 << 20


class PathFilter:
    """A filter made ready to match; raises FilterError for a line that is no expression."""

    def __init__(self, lines: Sequence[str], place: object = "of the image") -> None:
        """``place`` is what errors call it."""
        self._inverted = "!" in lines
        expressions = [line for line in lines if line and line != "!"]
        for line in expressions:
            try:
                re.compile(line)
            except re.error as error:
                raise FilterError(
                    place=place, detail=f"{line!r} is no regular expression: {error}"
                ) from None
        self._matches = None
        if expressions:
            self._matches = re.compile("|".join(f"(?:{line})" for line in expressions)).match

    def matches(self, path: bytes) -> bool:
        """Whether an absolute path is filtered out."""
        found = self._matches is not None and self._matches(os.fsdecode(path)) is not None
        return found is not self._inverted


def load_filter(path: Path) -> Filter:
    """The filter in a file: one expression a line; blank lines and ``#`` lines are skipped.

    Raises FilterError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise FilterError(place=path, detail=f"it has more than {MAX_BYTES} bytes")
        lines = [line.strip() for line in data.decode().splitlines()]
    except OSError as error:
        raise FilterError(place=path, detail=error.strerror) from error
    except UnicodeDecodeError as error:
        raise FilterError(place=path, detail=f"it is not UTF-8: {describe(error)}") from None
    kept = [line for line in lines if line and not line.startswith("#")]
    PathFilter(kept, place=path)
    return Filter(filter_lines=kept)
