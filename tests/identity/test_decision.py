"""The order of decisions, by a table written by hand, and the patterns of method names."""

import itertools

import pytest

from smallstack.identity.decision import Decision, Policy, decide, match
from smallstack.identity.peer import Peer, is_loopback

POWER = Decision(True, True)
PLAIN = Decision(True, False)
REFUSED = Decision(False, False)

CALLERS = {
    "nobody": Peer(),
    "user": Peer(username="alice", groups=frozenset({"dev"})),
    "all methods": Peer(username="root", methods=frozenset({"*.*"})),
    "this method": Peer(username="op", methods=frozenset({"Hypervisor.StartVm"})),
    "this service": Peer(username="op", methods=frozenset({"Hypervisor.*"})),
    "other method": Peer(username="op", methods=frozenset({"Hypervisor.StopVm"})),
    "other service": Peer(username="op", methods=frozenset({"ImageServer.*"})),
    "method, no name": Peer(methods=frozenset({"Hypervisor.*"})),
    "insecure server": Peer(methods=None),
    "trusted user": Peer(username="tina"),
    "trusted group": Peer(username="bob", groups=frozenset({"admins"})),
    "VM owner": Peer(username="olga"),
    "VM owner group": Peer(username="bob", groups=frozenset({"owners"})),
    "granted": Peer(username="grace"),
    "groups, no name": Peer(groups=frozenset({"admins", "owners"})),
    "without powers: all methods": Peer(
        username="root", methods=frozenset({"*.*"}), allow_method_powers=False
    ),
    "without powers: trusted": Peer(username="tina", allow_method_powers=False),
    "without powers: granted": Peer(username="grace", allow_method_powers=False),
    "without powers: insecure server": Peer(methods=None, allow_method_powers=False),
}
POLICY = Policy(
    trusted_users=frozenset({"tina"}),
    trusted_groups=frozenset({"admins"}),
    owner_users=frozenset({"olga"}),
    owner_groups=frozenset({"owners"}),
    grant=lambda service, peer: service == "Hypervisor" and peer.username == "grace",
)
#                                    power only  public   unauthenticated  public + unauthenticated
TABLE: dict[str, tuple[Decision, Decision, Decision, Decision]] = {
    "nobody": (REFUSED, REFUSED, PLAIN, PLAIN),
    "user": (REFUSED, PLAIN, PLAIN, PLAIN),
    "all methods": (POWER, POWER, POWER, POWER),
    "this method": (POWER, POWER, POWER, POWER),
    "this service": (POWER, POWER, POWER, POWER),
    "other method": (REFUSED, PLAIN, PLAIN, PLAIN),
    "other service": (REFUSED, PLAIN, PLAIN, PLAIN),
    "method, no name": (POWER, POWER, POWER, POWER),
    "insecure server": (POWER, POWER, POWER, POWER),
    "trusted user": (POWER, POWER, POWER, POWER),
    "trusted group": (POWER, POWER, POWER, POWER),
    "VM owner": (POWER, POWER, POWER, POWER),
    "VM owner group": (POWER, POWER, POWER, POWER),
    "granted": (POWER, POWER, POWER, POWER),
    "groups, no name": (REFUSED, REFUSED, PLAIN, PLAIN),
    "without powers: all methods": (REFUSED, PLAIN, PLAIN, PLAIN),
    "without powers: trusted": (REFUSED, PLAIN, PLAIN, PLAIN),
    "without powers: granted": (REFUSED, PLAIN, PLAIN, PLAIN),
    "without powers: insecure server": (REFUSED, REFUSED, PLAIN, PLAIN),
}
COLUMNS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("who", "column"), list(itertools.product(CALLERS, range(4))), ids=str)
def test_truth_table(who: str, column: int) -> None:
    public, unauthenticated = COLUMNS[column]
    found = decide(
        CALLERS[who],
        "Hypervisor.StartVm",
        public=public,
        unauthenticated=unauthenticated,
        policy=POLICY,
    )
    assert found == TABLE[who][column]


def test_the_table_is_whole() -> None:
    assert TABLE.keys() == CALLERS.keys()


def test_grant_is_asked_by_service_alone() -> None:
    asked: list[str] = []

    def grant(service: str, peer: Peer) -> bool:
        asked.append(service)
        return not peer.username

    policy = Policy(grant=grant)
    decide(Peer(), "Hypervisor.PowerOff", public=False, unauthenticated=False, policy=policy)
    assert asked == ["Hypervisor"]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.*", "Hypervisor.StartVm", True),
        ("Hyper*.Hold?ock", "Hypervisor.HoldLock", True),
        ("Hyper*.Hold?ock", "Hypervisor.HoldVmLock", False),
        ("Hypervisor.StartVm", "Hypervisor.StartVm", True),
        ("Hypervisor.StartVm", "Hypervisor.StartVm2", False),
        ("Hypervisor.[LH]*", "Hypervisor.ListVMs", True),
        ("Hypervisor.[^LH]*", "Hypervisor.ListVMs", False),
        ("Hypervisor.[A-K]*", "Hypervisor.GetVmInfo", True),
        ("Hypervisor.[", "Hypervisor.[", False),
        ("Hypervisor.[]", "Hypervisor.]", False),
        ("Hypervisor.[]a]", "Hypervisor.]", False),
        ("Hypervisor.[-]", "Hypervisor.-", False),
        (r"Hypervisor.[\-x]", "Hypervisor.-", True),
        (r"Hypervisor.\*", "Hypervisor.*", True),
        (r"Hypervisor.\*", "Hypervisor.StartVm", False),
        ("Hypervisor.*\\", "Hypervisor.x", False),
        ("*", "a/b", False),
        ("a?b", "a/b", False),
        ("", "", True),
        ("", "a", False),
        ("a*b*c", "aXbXbXc", True),
        ("a*b*c", "aXbXbX", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert match(pattern, name) is matches


def test_patterns_take_bounded_time() -> None:
    assert not match("*a" * 200 + "b", "a" * 2000)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("198.51.100.1", False),
        ("::ffff:198.51.100.1", False),
        ("fe80::1", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert Peer(remote_host=host).is_loopback is expected
