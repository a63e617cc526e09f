"""How long each phase of one operation took: a list of (name, start, end) on one clock.

The breakdown a user sees after a create is this list printed and nothing else. Times are
nanoseconds of ``time.monotonic_ns``, one clock for every process of a machine since its boot, so
the timelines of a client and of an agent on the same machine can be laid beside each other.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Phase(NamedTuple):
    """One named stretch of time; an instant has ``start_ns == end_ns``."""

    name: str
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """Nanoseconds from start to end."""
        return self.end_ns - self.start_ns


class Timeline:
    """The phases of one operation, in the order in which they ended. Phases may overlap."""

    __slots__ = ("_clock", "created_ns", "phases")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """``clock`` gives nanoseconds; tests pass their own."""
        self._clock = clock
        self.created_ns = clock()
        self.phases: list[Phase] = []

    def now(self) -> int:
        """Nanoseconds of the timeline's clock."""
        return self._clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the body as one phase, also when it raises."""
        start = self._clock()
        try:
            yield
        finally:
            self.phases.append(Phase(name, start, self._clock()))

    def mark(self, name: str) -> None:
        """Records an instant."""
        now = self._clock()
        self.phases.append(Phase(name, now, now))

    def add(self, name: str, start_ns: int, end_ns: int) -> None:
        """Records a phase that was timed elsewhere on the same clock."""
        self.phases.append(Phase(name, start_ns, end_ns))

    def duration_ns(self, name: str) -> int:
        """Nanoseconds spent in all phases called ``name``; 0 when there is none."""
        return sum(phase.duration_ns for phase in self.phases if phase.name == name)

    def as_dict(self) -> list[dict[str, object]]:
        """For JSON: ``{"name", "start_ns", "end_ns"}`` by start time."""
        return [phase._asdict() for phase in sorted(self.phases, key=lambda p: p.start_ns)]
