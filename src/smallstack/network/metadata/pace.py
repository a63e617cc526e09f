"""How fast one guest may ask, so that it cannot keep the agent from everybody else; no I/O."""


class Pace:
    """The generic cell rate algorithm (ITU-T I.371), per key: ``burst`` at once, then ``rate`` a
    second. Times are seconds on any clock that does not go back."""

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._credit = burst / rate
        self._due: dict[str, float] = {}

    def delay(self, key: str, now: float) -> float:
        """Count one request; how long it has to wait, 0 if it need not."""
        due = max(self._due.get(key, 0.0), now - self._credit) + self._interval
        self._due[key] = due
        return max(0.0, due - now)

    def forget(self, key: str) -> None:
        """Drop what is known of a key."""
        self._due.pop(key, None)
