"""Refusals in the log: who was refused what, from where; however many there are, few lines.

Each caller (a user at an address) has some lines at once and then one in a while, which tells how
many it stands for. So neither a flood of refusals fills the disk, nor does one caller's flood hide
another one's refusal. When too many callers are refused, the late ones share one allowance.
"""

import logging
import time
from typing import Final

LINES_AT_ONCE: Final = 10
SECONDS_A_LINE: Final = 10.0
MAX_CALLERS: Final = 1000

_log = logging.getLogger("smallstack.audit")


class _Allowance:
    """Of one caller: lines left, when that was so, and how many were left out since the last."""

    __slots__ = ("lines", "silent", "time")

    def __init__(self, now: float) -> None:
        self.lines = float(LINES_AT_ONCE)
        self.time = now
        self.silent = 0


class Audit:
    """The refusals of one server."""

    def __init__(self) -> None:
        self._callers: dict[str, _Allowance] = {}

    def refused(self, who: str, where: str, what: str, now: float | None = None) -> None:
        """Note that ``who`` (a user, or "" for nobody known), calling from ``where``, was refused.

        ``now``: seconds of the monotonic clock.
        """
        now = time.monotonic() if now is None else now
        caller = f"{_one_line(who) or '(nobody)'}@{where.rpartition(':')[0] or where}"
        known = self._allowance(caller, now)
        known.lines = min(LINES_AT_ONCE, known.lines + (now - known.time) / SECONDS_A_LINE)
        known.time = now
        if known.lines < 1.0:
            known.silent += 1
            return
        known.lines -= 1.0
        more = f" (and {known.silent} times more, not shown)" if known.silent else ""
        known.silent = 0
        _log.info("refused: %s from %s: %s%s", caller, where, _one_line(what), more)

    def _allowance(self, caller: str, now: float) -> _Allowance:
        known = self._callers.get(caller)
        if known is None:
            if len(self._callers) >= MAX_CALLERS:
                self._forget(now)
            if len(self._callers) >= MAX_CALLERS:
                caller = ""
            known = self._callers.setdefault(caller, _Allowance(now))
        return known

    def _forget(self, now: float) -> None:
        """Those who have all their lines again and nothing left to tell."""
        whole = SECONDS_A_LINE * LINES_AT_ONCE
        self._callers = {
            caller: known
            for caller, known in self._callers.items()
            if known.silent or known.time + whole > now
        }


def _one_line(text: str) -> str:
    """Names come from certificates and could forge lines."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])
