"""The table of ends: what was seen, and the reason it stands for."""

import pytest

from smallstack.machine.agent_port import Word
from smallstack.machine.lifecycle import Evidence, ExitReason, exit_reason
from smallstack.machine.spec import MachineType

R = ExitReason
UP = True
# machine, word, SHUTDOWN's reason, monitor answered, quit asked, limit hit, status -> reason
TABLE: list[
    tuple[MachineType, Word | None, str | None, bool, bool, bool, int | None, ExitReason]
] = [
    ("microvm", Word.STOPPING, "guest-reset", UP, False, False, 0, R.GUEST_SHUTDOWN),
    ("microvm", Word.REBOOTING, "guest-reset", UP, False, False, 0, R.REBOOT),
    ("microvm", Word.READY, "guest-reset", UP, False, False, 0, R.CRASHED),
    ("microvm", None, "guest-reset", UP, False, False, 0, R.CRASHED),
    # The monitor came too late for the event.
    ("microvm", None, None, False, False, False, 0, R.CRASHED),
    ("microvm", Word.STOPPING, None, False, False, False, 0, R.GUEST_SHUTDOWN),
    ("microvm", Word.REBOOTING, None, False, False, False, 0, R.REBOOT),
    # Another agent's child: no status. Without a word nobody knows.
    ("microvm", Word.STOPPING, None, UP, False, False, None, R.GUEST_SHUTDOWN),
    ("microvm", Word.REBOOTING, None, UP, False, False, None, R.REBOOT),
    ("microvm", None, None, UP, False, False, None, R.DIED),
    ("microvm", None, "guest-reset", UP, False, False, None, R.CRASHED),
    # Asked to quit: that is the reason, unless the guest was faster.
    ("microvm", Word.READY, "host-qmp-quit", UP, True, False, 0, R.QUIT),
    ("microvm", Word.STOPPING, "host-qmp-quit", UP, True, False, 0, R.QUIT),
    ("microvm", Word.STOPPING, "guest-reset", UP, True, False, 0, R.GUEST_SHUTDOWN),
    ("microvm", None, None, UP, True, False, -9, R.QUIT),
    ("microvm", None, None, False, True, False, None, R.QUIT),
    # Somebody else ended it.
    ("microvm", Word.READY, "host-signal", UP, False, False, 0, R.DIED),
    ("microvm", Word.READY, "host-qmp-quit", UP, False, False, 0, R.DIED),
    ("microvm", Word.READY, None, UP, False, False, -9, R.DIED),
    ("microvm", Word.READY, None, UP, False, False, -6, R.DIED),
    ("microvm", Word.READY, None, UP, False, False, 1, R.DIED),
    ("microvm", Word.STOPPING, None, UP, False, False, -11, R.DIED),
    # It never got anywhere.
    ("microvm", None, None, False, False, False, 1, R.FAILED),
    ("microvm", None, None, False, False, False, -11, R.FAILED),
    ("microvm", None, None, False, False, True, -9, R.FAILED),
    ("q35", None, None, False, False, True, -9, R.FAILED),
    # q35: power-off is ACPI's, panic the panic device's; a reset is no end.
    ("q35", None, "guest-shutdown", UP, False, False, 0, R.GUEST_SHUTDOWN),
    ("q35", None, "guest-shutdown", UP, True, False, 0, R.GUEST_SHUTDOWN),
    ("q35", None, "guest-panic", UP, False, False, 0, R.CRASHED),
    ("q35", None, "host-qmp-quit", UP, True, False, 0, R.QUIT),
    ("q35", None, None, UP, False, False, 0, R.GUEST_SHUTDOWN),
    ("q35", None, None, UP, False, False, None, R.DIED),
    ("q35", None, None, UP, False, False, -9, R.DIED),
    ("q35", None, None, False, False, False, 1, R.FAILED),
    ("q35", None, "host-signal", UP, False, False, 0, R.DIED),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:3])))
def test_reason(
    row: tuple[MachineType, Word | None, str | None, bool, bool, bool, int | None, ExitReason],
) -> None:
    machine_type, word, shutdown, answered, quit_asked, limit_hit, status, expected = row
    seen = Evidence(machine_type, word, shutdown, answered, quit_asked, limit_hit, status)
    assert exit_reason(seen) is expected


def test_every_reason_is_in_the_table() -> None:
    assert {row[-1] for row in TABLE} == set(ExitReason)
