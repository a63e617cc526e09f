"""A uid for every VM, and none that somebody else has."""

import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.hypervisor.agent import Agent, Parts
from smallstack.hypervisor.users import COUNT, FIRST, UidsError, check_uids, free_slot
from smallstack.proto.enums import State
from tests.hypervisor.fakes import IP, FakeRuntime, make_vm


def test_slots() -> None:
    """By the address; the next free one, round the end, where another VM has it."""
    assert free_slot("198.51.100.3", ()) == 100 * 256 + 3
    assert free_slot("203.0.100.3", {100 * 256 + 3, 100 * 256 + 4}) == 100 * 256 + 5
    assert free_slot("10.0.255.255", {COUNT - 1}) == 0


async def test_a_slot_that_is_kept_goes_to_no_new_vm(tmp_path: Path) -> None:
    """A converter still has the uid of a VM that is gone."""
    book = SimpleNamespace(on_change=[])
    agent = Agent(cast("Parts", SimpleNamespace(book=book, wiring=None)))
    slots = []
    kept = agent.keeping_slot(free_slot(IP, ()))
    for _ in range(3):
        vm = make_vm(tmp_path, FakeRuntime(), State.STOPPED)
        agent.add(vm)
        slots.append(vm.agent.slot - free_slot(IP, ()))
        if len(slots) == 1:
            kept.__enter__()
        await agent.remove(vm)
        if len(slots) == 2:
            kept.__exit__(None, None, None)
    assert slots == [0, 1, 0]


def test_the_default_is_nobodys() -> None:
    check_uids(FIRST)
    assert FIRST + COUNT < 1 << 31


NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (0, r"QEMU cannot have the uids 0 to 65535: 0 is root; name another first one"),
        (-1, "0 is root"),
        (NOBODY, f"{NOBODY} is the user 'nobody'"),
        (1, "is the user"),
        ((1 << 32) - COUNT, "this user namespace has not all of them"),
    ],
)
def test_uids_that_are_not_for_us(first: int, text: str) -> None:
    with pytest.raises(UidsError, match=text):
        check_uids(first)
