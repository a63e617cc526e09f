"""A VM's states: the whole machine as a table. Data and one lookup; see vm.py for the task.

::

                     START                  UP
      stopped ─────────────────► starting ─────────────────► running ◄──┐
       ▲  ▲ ▲ ▲                   │  ▲  ▲                    │ │ │ │    │ REBOOT
       │  │ │ │           FAILED  │  │  │ START        STOP  │ │ │ └────┘ (guest asked)
       │  │ │ └── STOP ─── failed ◄──┘  │                    │ │ │
       │  │ └──── STOP ─── crashed ─────┘                    │ │ │ CRASHED
       │  │                   ▲ └── DESTROY ──┐              │ │ └────► crashed
       │  └── GUEST_SHUTDOWN ─│───────────────│──────────────│─┘
       │                      └───────────────│──────────────│── (while running)
       └───────── any end ── stopping ◄───────│──────────────┘
                                              ▼
      stopped, failed, crashed ─ DESTROY ─► destroying ◄── DESTROY, EXPIRE ── running
                                              │ any end: files, lease, address go
                                              ▼
                                            (gone)

Requests come from callers (START STOP REBOOT DESTROY; ACKNOWLEDGE, which keeps a new VM in any
state but ``destroying``), from the agent itself (EXPIRE: the create was not acknowledged, or its
client went away; FIND: look for what an earlier run of the agent left, at start; what came of it
is FOUND or LOST) and from the machine (UP, FAILED, and its ends).
A pair of state and event either leads to a state with an action, or is refused with a text; nothing
is left out. Where an event is none of a state's business, such as the end of a machine that was
given up, it is ignored.

What FIND comes to::

    starting, running, failed, crashed, debugging    FOUND: running  LOST: starting, launched again
    stopping                                         FOUND: quit     LOST: stopped
    destroying                                       FOUND: quit     LOST: deleted
    stopped, migrating, exporting                    not looked for

A VM that is stopped, and whose volumes are DAMAGED, is shown as one that failed to start. On disk
it stays stopped: a later start of the agent, which finds them whole, does not launch it.

``migrating``, ``exporting`` and ``debugging`` are states that a record may have although nothing
here leads to them.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from smallstack.proto.enums import State


class Event(Enum):
    """What can happen to a VM."""

    START = "start"
    STOP = "stop"
    REBOOT = "reboot"
    DESTROY = "destroy"
    ACKNOWLEDGE = "acknowledge"
    EXPIRE = "expire"
    FIND = "find"
    FOUND = "found"
    LOST = "lost"
    DAMAGED = "volumes are damaged"
    UP = "up"
    FAILED = "failed to start"
    GUEST_SHUTDOWN = "guest shut down"
    GUEST_REBOOT = "guest reboots"
    CRASHED = "crashed"
    QUIT = "was quit"


class Action(Enum):
    """What the VM's task does on the way into the new state."""

    NOTHING = "nothing"
    LAUNCH = "launch a machine"
    ASK_STOP = "ask the guest to stop, quit it after a time"
    ASK_REBOOT = "ask the guest to reboot"
    QUIT = "quit the machine"
    DELETE = "delete everything"
    KEEP = "note that its creator knows it"
    SEARCH = "look for the machine of an earlier run: FOUND or LOST"
    POWERED_DOWN = "stopped for good, destroyed if the VM wants that"


@dataclass(frozen=True)
class Rule:
    """What an event does in a state: go to ``state`` (None: stay) and act, or be refused."""

    state: State | None = None
    action: Action = Action.NOTHING
    refusal: str = ""


_S, _E, _A = State, Event, Action

STOP_TIMEOUT: Final = 15.0
"""Seconds that a guest has to obey a stop."""

REQUESTS: Final = (_E.START, _E.STOP, _E.REBOOT, _E.DESTROY, _E.ACKNOWLEDGE)
"""What callers may ask for; the only events that are ever refused."""

ENDS: Final = (_E.GUEST_SHUTDOWN, _E.GUEST_REBOOT, _E.CRASHED, _E.QUIT)
"""The ways in which a machine that was up ends."""


def _refuse(text: str) -> Rule:
    return Rule(refusal=text)


IGNORED: Final = Rule()

_REQUESTS: Final[dict[State, dict[Event, Rule]]] = {
    _S.STARTING: {
        _E.START: _refuse("VM is already starting"),
        _E.STOP: _refuse("VM is starting"),
        _E.REBOOT: _refuse("VM is starting"),
        _E.DESTROY: _refuse("VM is starting"),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.QUIT),
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.RUNNING: {
        _E.START: _refuse("VM is running"),
        _E.STOP: Rule(_S.STOPPING, _A.ASK_STOP),
        _E.REBOOT: Rule(None, _A.ASK_REBOOT),
        _E.DESTROY: Rule(_S.DESTROYING, _A.QUIT),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.QUIT),
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.FAILED_TO_START: {
        _E.START: Rule(_S.STARTING, _A.LAUNCH),
        _E.STOP: Rule(_S.STOPPED),
        _E.REBOOT: _refuse("VM failed to start"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.DELETE),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.DELETE),
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.STOPPING: {
        _E.START: _refuse("VM is stopping"),
        _E.STOP: _refuse("VM is stopping"),
        _E.REBOOT: _refuse("VM is stopping"),
        _E.DESTROY: _refuse("VM is stopping"),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.QUIT),
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.STOPPED: {
        _E.START: Rule(_S.STARTING, _A.LAUNCH),
        _E.STOP: _refuse("VM is already stopped"),
        _E.REBOOT: _refuse("VM is stopped"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.DELETE),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.DELETE),
        _E.FIND: IGNORED,
    },
    _S.DESTROYING: {
        _E.START: _refuse("VM is destroying"),
        _E.STOP: _refuse("VM is destroying"),
        _E.REBOOT: _refuse("VM is destroying"),
        _E.DESTROY: _refuse("VM is already destroying"),
        _E.ACKNOWLEDGE: _refuse("VM is destroying"),
        _E.EXPIRE: IGNORED,
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.MIGRATING: {
        _E.START: _refuse("VM is migrating"),
        _E.STOP: _refuse("VM is migrating"),
        _E.REBOOT: _refuse("VM is migrating"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.DELETE),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.DELETE),
        _E.FIND: IGNORED,
    },
    _S.EXPORTING: {
        _E.START: Rule(_S.STARTING, _A.LAUNCH),
        _E.STOP: _refuse("VM is exporting"),
        _E.REBOOT: _refuse("VM is exporting"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.DELETE),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.DELETE),
        _E.FIND: IGNORED,
    },
    _S.CRASHED: {
        _E.START: Rule(_S.STARTING, _A.LAUNCH),
        _E.STOP: Rule(_S.STOPPED),
        _E.REBOOT: _refuse("VM has crashed"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.DELETE),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.DELETE),
        _E.FIND: Rule(None, _A.SEARCH),
    },
    _S.DEBUGGING: {
        _E.START: _refuse("VM is debugging: stop it first"),
        _E.STOP: Rule(_S.STOPPING, _A.ASK_STOP),
        _E.REBOOT: _refuse("VM is debugging"),
        _E.DESTROY: Rule(_S.DESTROYING, _A.QUIT),
        _E.EXPIRE: Rule(_S.DESTROYING, _A.QUIT),
        _E.FIND: Rule(None, _A.SEARCH),
    },
}

_FOUND: Final[dict[Event, Rule]] = {
    _E.FOUND: Rule(_S.RUNNING),
    _E.LOST: Rule(_S.STARTING, _A.LAUNCH),
}
_WHILE_UP: Final[dict[Event, Rule]] = {
    **_FOUND,
    _E.GUEST_SHUTDOWN: Rule(_S.STOPPED, _A.POWERED_DOWN),
    _E.GUEST_REBOOT: Rule(_S.STARTING, _A.LAUNCH),
    _E.CRASHED: Rule(_S.CRASHED),
    _E.QUIT: Rule(_S.CRASHED),
}

_MACHINE: Final[dict[State, dict[Event, Rule]]] = {
    _S.STARTING: {**_FOUND, _E.UP: Rule(_S.RUNNING), _E.FAILED: Rule(_S.FAILED_TO_START)},
    _S.STOPPED: {_E.DAMAGED: Rule(_S.FAILED_TO_START)},
    _S.FAILED_TO_START: _FOUND,
    _S.CRASHED: _FOUND,
    _S.RUNNING: _WHILE_UP,
    _S.DEBUGGING: _WHILE_UP,
    _S.STOPPING: {
        _E.FOUND: Rule(None, _A.QUIT),
        _E.LOST: Rule(_S.STOPPED),
        _E.FAILED: Rule(_S.STOPPED),
        **dict.fromkeys(ENDS, Rule(_S.STOPPED)),
    },
    _S.DESTROYING: {
        _E.FOUND: Rule(None, _A.QUIT),
        _E.UP: Rule(None, _A.QUIT),
        _E.LOST: Rule(None, _A.DELETE),
        _E.FAILED: Rule(None, _A.DELETE),
        **dict.fromkeys(ENDS, Rule(None, _A.DELETE)),
    },
}

_KEPT: Final[dict[Event, Rule]] = {_E.ACKNOWLEDGE: Rule(None, _A.KEEP)}

TABLE: Final[dict[tuple[State, Event], Rule]] = {
    (state, event): (_KEPT | _REQUESTS[state] | _MACHINE.get(state, {})).get(event, IGNORED)
    for state in State
    for event in Event
}
"""Every pair there is."""


def rule(state: State, event: Event) -> Rule:
    """What ``event`` does in ``state``; a state of a later version refuses every request."""
    found = TABLE.get((state, event))
    if found is not None:
        return found
    if event in REQUESTS:
        return _refuse(f"unknown state: {state.text}")
    return IGNORED
