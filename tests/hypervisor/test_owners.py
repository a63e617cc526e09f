"""Who owns a Hypervisor: kept over a restart, changed whole or not at all."""

import asyncio
from pathlib import Path

import pytest

from smallstack.hypervisor.errors import RecordError
from smallstack.hypervisor.owners import FILE, Owners
from smallstack.identity.decision import Decision, Policy, decide
from smallstack.identity.peer import Peer

OLGA = Peer(username="olga")
MEMBER = Peer(username="mia", groups=frozenset({"site", "dev"}))
NAMELESS = Peer(groups=frozenset({"site"}))


def decided(owners: Owners, peer: Peer, method: str = "Hypervisor.PowerOff") -> Decision:
    return decide(
        peer, method, public=False, unauthenticated=False, policy=Policy(grant=owners.grant)
    )


async def test_owners_have_powers_at_once_and_after_a_restart(tmp_path: Path) -> None:
    owners = Owners.load(tmp_path)
    assert not decided(owners, OLGA).allowed
    await owners.change(["olga", "olga", ""], ["site"])
    for known in (owners, Owners.load(tmp_path)):
        assert decided(known, OLGA) == Decision(True, True)
        assert decided(known, OLGA, "Logger.Watch") == Decision(True, True)
        assert decided(known, MEMBER) == Decision(True, True)
        assert not decided(known, NAMELESS).allowed
        assert not decided(known, Peer(username="eve")).allowed
        assert not decided(known, Peer(username="")).allowed
    assert (tmp_path / FILE).read_text() == (
        '{\n    "OwnerGroups": [\n        "site"\n    ],\n'
        '    "OwnerUsers": [\n        "olga"\n    ]\n}\n'
    )
    await owners.change([], [])
    assert not decided(owners, OLGA).allowed
    assert not Owners.load(tmp_path).users


async def test_one_who_gives_up_powers_is_no_owner(tmp_path: Path) -> None:
    owners = Owners.load(tmp_path)
    await owners.change(["olga"], [])
    assert not decided(owners, Peer(username="olga", allow_method_powers=False)).allowed


async def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    owners = Owners.load(state)
    await owners.change(["olga"], [])
    state.rename(tmp_path / "gone")
    with pytest.raises(RecordError, match=r"cannot write .*owners\.json: No such file"):
        await owners.change(["eve"], [])
    assert owners.users == {"olga"}


async def test_a_change_that_is_cancelled_is_whole(tmp_path: Path) -> None:
    owners = Owners.load(tmp_path)
    task = asyncio.create_task(owners.change(["olga"], ["site"]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    kept = Owners.load(tmp_path)
    assert (kept.users, kept.groups) == (owners.users, owners.groups)


@pytest.mark.parametrize("text", ["{", "[]", '{"OwnerUsers": 5}'])
def test_a_broken_file_is_told_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecordError, match=r"cannot read .*owners\.json"):
        Owners.load(tmp_path)
    assert (tmp_path / FILE).read_text() == text
