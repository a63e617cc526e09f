"""Triggers: which services a machine restarts when files of an image change on it.

A file of them is a JSON list of ``{"MatchLines": [...], "Service": "...", ...}``; lines that begin
with ``#``, ``//`` or ``!`` are comments.
"""

import re
from pathlib import Path

import msgspec

from smallstack.images.errors import TriggersError
from smallstack.proto.image import Trigger, Triggers
from smallstack.telemetry.errors import describe

_COMMENT = ("#", "//", "!")


def load_triggers(path: Path) -> Triggers:
    """The triggers in a file; raises TriggersError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise TriggersError(place=path, detail=error.strerror) from error
    except UnicodeDecodeError as error:
        raise TriggersError(place=path, detail=f"it is not UTF-8: {describe(error)}") from None
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(_COMMENT)]
    try:
        found = msgspec.json.decode("\n".join(lines), type=list[Trigger])
    except msgspec.DecodeError as error:
        raise TriggersError(place=path, detail=describe(error)) from None
    for number, trigger in enumerate(found, 1):
        if not trigger.service:
            raise TriggersError(place=path, detail=f"trigger {number} names no service")
        for line in trigger.match_lines:
            try:
                re.compile(line)
            except re.error as error:
                detail = f"{line!r} is no regular expression: {error}"
                raise TriggersError(place=path, detail=detail) from None
    return Triggers(triggers=found)
