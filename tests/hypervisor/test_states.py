"""The table is complete, refuses in upstream's words, and has no state without a way out."""

import pytest

from smallstack.hypervisor import states
from smallstack.hypervisor.states import Action, Event, rule
from smallstack.proto.enums import State


def test_every_pair_has_a_rule() -> None:
    assert len(states.TABLE) == len(State) * len(Event)
    for state in State:
        for event in Event:
            assert (state, event) in states.TABLE


def test_only_requests_are_refused() -> None:
    for (state, event), found in states.TABLE.items():
        if found.refusal:
            assert event in states.REQUESTS, (state, event)
            assert found.state is None
            assert found.action is Action.NOTHING


def test_every_request_is_answered_in_every_state() -> None:
    """A request either does something or says why not."""
    for state in State:
        for event in states.REQUESTS:
            found = rule(state, event)
            assert found.refusal or found.state is not None or found.action is not Action.NOTHING


TEXTS = {
    # state: (start, stop, reboot, destroy); None: allowed. Acknowledging: below.
    State.STARTING: (
        "VM is already starting",
        "VM is starting",
        "VM is starting",
        "VM is starting",
    ),
    State.RUNNING: ("VM is running", None, None, None),
    State.FAILED_TO_START: (None, None, "VM failed to start", None),
    State.STOPPING: ("VM is stopping",) * 4,
    State.STOPPED: (None, "VM is already stopped", "VM is stopped", None),
    State.DESTROYING: (*("VM is destroying",) * 3, "VM is already destroying"),
    State.MIGRATING: (*("VM is migrating",) * 3, None),
    State.EXPORTING: (None, "VM is exporting", "VM is exporting", None),
    State.CRASHED: (None, None, "VM has crashed", None),
    State.DEBUGGING: ("VM is debugging: stop it first", None, "VM is debugging", None),
}


@pytest.mark.parametrize("state", list(State))
def test_refusals(state: State) -> None:
    *refusals, kept = (rule(state, event).refusal or None for event in states.REQUESTS)
    assert tuple(refusals) == TEXTS[state]
    assert kept == ("VM is destroying" if state is State.DESTROYING else None)


def test_every_state_leads_to_the_end() -> None:
    """By events that may come, DELETE can be reached from every state."""
    reached: set[State] = set()
    frontier = [
        state
        for state in State
        if any(rule(state, event).action is Action.DELETE for event in Event)
    ]
    while frontier:
        target = frontier.pop()
        reached.add(target)
        frontier += [
            state
            for state in State
            if state not in reached and any(rule(state, event).state is target for event in Event)
        ]
    assert reached == set(State)


def test_expire_ends_every_state() -> None:
    """An unacknowledged VM is destroyed wherever it is."""
    for state in State:
        found = rule(state, Event.EXPIRE)
        assert state is State.DESTROYING or found.state is State.DESTROYING


@pytest.mark.parametrize("event", states.ENDS)
def test_the_end_of_a_machine_never_leaves_it_running(event: Event) -> None:
    for state in (State.RUNNING, State.DEBUGGING, State.STOPPING, State.DESTROYING):
        found = rule(state, event)
        assert (
            found.state
            in (
                State.STOPPED,
                State.CRASHED,
                State.STARTING,
            )
            or found.action is Action.DELETE
        )


def test_what_a_start_finds() -> None:
    """Upstream's table of states at the start of management."""
    for state in (
        State.STARTING,
        State.RUNNING,
        State.FAILED_TO_START,
        State.CRASHED,
        State.DEBUGGING,
    ):
        assert rule(state, Event.FIND).action is Action.SEARCH
        assert rule(state, Event.FOUND).state is State.RUNNING
        assert rule(state, Event.LOST) == states.Rule(State.STARTING, Action.LAUNCH)
    assert rule(State.STOPPING, Event.FOUND).action is Action.QUIT
    assert rule(State.STOPPING, Event.LOST).state is State.STOPPED
    assert rule(State.DESTROYING, Event.FOUND).action is Action.QUIT
    assert rule(State.DESTROYING, Event.LOST).action is Action.DELETE
    for state in (State.STOPPED, State.MIGRATING, State.EXPORTING):
        assert rule(state, Event.FIND) == states.IGNORED
    for state in State:
        found = rule(state, Event.DAMAGED)
        if state is State.STOPPED:
            assert found == states.Rule(State.FAILED_TO_START)
        else:
            assert found == states.IGNORED  # a launch finds out


def test_a_state_of_the_future() -> None:
    state = State(99)
    assert rule(state, Event.START).refusal == "unknown state: UNKNOWN State"
    assert rule(state, Event.CRASHED) == states.IGNORED


def test_the_drawing_names_every_state_that_a_vm_can_enter() -> None:
    drawn = states.__doc__ or ""
    for found in states.TABLE.values():
        if found.state is not None:
            assert found.state.text.split()[0] in drawn
