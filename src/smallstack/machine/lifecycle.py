"""Why a machine ended: a pure function of what was seen of it.

::

                launch
                  │ exec succeeded
                  ▼
              starting ── monitor silent for the start limit ──► killed ─────► failed
                  │ │
     monitor up   │ └─ the process ends by itself, monitor never up ─────────► failed
                  ▼
               running ── guest resets, no word (panic, triple fault) ───────► crashed
                │ │ │ └── guest resets after `rebooting` ────────────────────► reboot
                │ │ └──── guest resets after `stopping`, or powers off ──────► guest-shutdown
                │ └────── QEMU dies (signal, abort, a failed assertion) ─────► died
                ▼
        quit asked (stop not obeyed, destroy) ── monitor's quit, or SIGKILL ─► quit

On microvm a reset always ends the process and power-off does not exist, so the guest's last word
on its port decides. On q35 a reset stays inside the process and is no end; ACPI says the rest.
"""

from dataclasses import dataclass
from enum import StrEnum

from smallstack.machine.agent_port import Word
from smallstack.machine.spec import MachineType


class ExitReason(StrEnum):
    """How a machine ended."""

    GUEST_SHUTDOWN = "guest-shutdown"
    """The guest stopped in good order: asked to, or of its own accord."""
    REBOOT = "reboot"
    """The guest wants to start again (microvm only): launch the same spec again."""
    QUIT = "quit"
    """We ended it, without the guest's consent."""
    CRASHED = "crashed"
    """The guest panicked, or reset without a word."""
    DIED = "died"
    """QEMU itself went away: a signal, an abort."""
    FAILED = "failed-to-start"
    """QEMU ended, or was killed for its silence, before its monitor answered."""


@dataclass(slots=True)
class Evidence:
    """What was seen of one process, filled in as it comes.

    ``shutdown`` is the ``reason`` of QMP's SHUTDOWN event (ShutdownCause in QEMU's
    qapi/run-state.json). ``status`` is the exit code, negative for a signal, and None for a
    process that an earlier agent started.
    """

    machine_type: MachineType
    word: Word | None = None
    shutdown: str | None = None
    monitor_answered: bool = False
    quit_asked: bool = False
    start_limit_hit: bool = False
    status: int | None = None


def exit_reason(seen: Evidence) -> ExitReason:
    """The reason, once the process has ended and its sockets are drained."""
    if seen.start_limit_hit:
        return ExitReason.FAILED
    match seen.shutdown:
        case "guest-panic":
            return ExitReason.CRASHED
        case "guest-shutdown":
            return ExitReason.GUEST_SHUTDOWN
        case "guest-reset":
            return _after_reset(seen)
        case None:
            pass
        case _:
            return ExitReason.QUIT if seen.quit_asked else ExitReason.DIED
    if seen.quit_asked:
        return ExitReason.QUIT
    if seen.status not in {0, None}:
        return ExitReason.DIED if seen.monitor_answered else ExitReason.FAILED
    # It ended well, or nobody knows how, and the monitor was too late to tell why.
    if seen.machine_type == "microvm" and (seen.status == 0 or seen.word is not None):
        return _after_reset(seen)
    if seen.status == 0:
        return ExitReason.GUEST_SHUTDOWN
    return ExitReason.DIED


def _after_reset(seen: Evidence) -> ExitReason:
    if seen.word is Word.STOPPING:
        return ExitReason.GUEST_SHUTDOWN
    if seen.word is Word.REBOOTING:
        return ExitReason.REBOOT
    return ExitReason.CRASHED
