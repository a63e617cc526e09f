"""Where a process is: the stack of each thread, and what each task waits for.

Tasks at the same place are told once, with their number: a daemon has one for each connection.
"""

import asyncio
import sys
import threading
from types import FrameType
from typing import Any, Final

MAX_TEXT: Final = 1 << 20
MAX_DEPTH: Final = 64
_TURN: Final = 64
"""Tasks looked at before others have their turn."""

_Place = tuple[str, ...]


async def everything() -> str:
    """Threads first, then tasks, those of the most frequented place first; up to 1 MiB."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}:\n" + "".join(_thread(frame))
        for ident, frame in sys._current_frames().items()
    ]
    places: dict[_Place, int] = {}
    for count, task in enumerate(asyncio.all_tasks()):
        place = _task(task.get_coro())
        places[place] = places.get(place, 0) + 1
        if count % _TURN == 0:
            await asyncio.sleep(0)
    for place, number in sorted(places.items(), key=lambda item: -item[1]):
        parts.append(f"{number} task{'s' if number > 1 else ''}:\n" + "".join(place))
    return "\n".join(parts)[:MAX_TEXT]


def _thread(frame: FrameType | None) -> list[str]:
    """The innermost frame last, as in tracebacks."""
    lines: list[str] = []
    while frame is not None and len(lines) < MAX_DEPTH:
        lines.append(_line(frame))
        frame = frame.f_back
    return lines[::-1]


def _task(waiting: Any) -> _Place:
    """A coroutine, what it awaits, and so on: a task that waits has only its own frame."""
    lines: list[str] = []
    while waiting is not None and len(lines) < MAX_DEPTH:
        for name in ("cr_frame", "gi_frame", "ag_frame"):
            frame = getattr(waiting, name, None)
            if frame is not None:
                lines.append(_line(frame))
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return tuple(lines)


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"  {code.co_filename}:{frame.f_lineno} in {code.co_qualname}\n"
