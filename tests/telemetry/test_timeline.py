"""The timeline records phases on the clock it is given."""

from collections.abc import Callable

import pytest

from smallstack.telemetry.timeline import Phase, Timeline


def _ticks() -> Callable[[], int]:
    return iter(range(0, 1000, 10)).__next__


def test_phases_marks_and_order() -> None:
    timeline = Timeline(_ticks())
    with timeline.phase("outer"), timeline.phase("inner"):
        timeline.mark("here")
    assert timeline.phases == [
        Phase("here", 30, 30),
        Phase("inner", 20, 40),
        Phase("outer", 10, 50),
    ]
    assert [row["name"] for row in timeline.as_dict()] == ["outer", "inner", "here"]
    assert timeline.as_dict()[0] == {"name": "outer", "start_ns": 10, "end_ns": 50}
    assert timeline.duration_ns("outer") == 40
    assert timeline.duration_ns("nothing") == 0


def test_a_failing_phase_is_recorded() -> None:
    timeline = Timeline(_ticks())
    with pytest.raises(ValueError, match="x"), timeline.phase("bad"):
        raise ValueError("x")
    assert timeline.phases == [Phase("bad", 10, 20)]
