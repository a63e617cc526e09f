"""How often one user calls, so that a user who floods takes nothing from the others.

Each user may call so many times a second, a second's worth of it at once. Who calls more often
waits, connection by connection; nothing is refused. And only while somebody else calls too (has
done so within `COMPANY_SECONDS`): alone, a user has the whole server.

Time is passed in, seconds of any clock that goes forward.
"""

from typing import Final

BURST_SECONDS: Final = 1.0
COMPANY_SECONDS: Final = 10.0
MAX_USERS: Final = 1000
"""Users that are kept in mind; it takes a certificate, or an address, to be one."""


class Rates:
    """The calls of every user, by name."""

    __slots__ = ("_due", "_last", "_other", "per_second")

    def __init__(self, per_second: float) -> None:
        """``per_second`` 0: no limit."""
        self.per_second = per_second
        self._due: dict[str, float] = {}
        # The last two users who called, and when.
        self._last = ("", -COMPANY_SECONDS)
        self._other = ("", -COMPANY_SECONDS)

    def delay(self, user: str, now: float) -> float:
        """Seconds that a call of this user is to wait; it counts as made. 0 nearly always."""
        if self.per_second <= 0.0:
            return 0.0
        name, _ = self._last
        if name != user:
            self._other = self._last
        self._last = (user, now)
        due = self._due.get(user)
        if due is None:
            if len(self._due) >= MAX_USERS:
                self._forget(now)
            due = now
        due = max(due, now) + 1.0 / self.per_second
        ahead = due - now - BURST_SECONDS
        if ahead > 0.0 and now - self._other[1] > COMPANY_SECONDS:
            due -= ahead  # nobody else is there: the debt is let go
            ahead = 0.0
        self._due[user] = due
        return max(0.0, ahead)

    def _forget(self, now: float) -> None:
        """Those who are in nobody's way; when there are too many for that, all."""
        self._due = {user: due for user, due in self._due.items() if due > now}
        if len(self._due) >= MAX_USERS:
            self._due.clear()
