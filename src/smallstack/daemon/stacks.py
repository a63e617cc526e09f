"""Where a process is: the stack of each thread, and what each task waits for.

Tasks at the same place are told once, with their number: a daemon has one for each connection.
"""

import asyncio
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any, Final

MAX_TEXT: Final = 1 << 20
MAX_DEPTH: Final = 64

_Place = tuple[str, ...]


def everything(loop: asyncio.AbstractEventLoop) -> str:
    """Threads first, then tasks, those of the most frequented place first; up to 1 MiB.

    For another thread than the loop's, which goes on meanwhile: thousands of tasks take a while.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}:\n" + "".join(_thread(frame))
        for ident, frame in sys._current_frames().items()
    ]
    places = Counter(_task(task.get_coro()) for task in asyncio.all_tasks(loop))
    for place, number in places.most_common():
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
