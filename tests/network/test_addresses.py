"""The address pool and the subnets: order, texts, and what holds after any run of changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smallstack.network.addresses import AddressPool
from smallstack.network.errors import (
    AddressError,
    BadIpError,
    BadMacError,
    BadSubnetError,
    NoMatchingSubnetError,
    SubnetError,
)
from smallstack.network.macs import mac_text, packed_mac
from smallstack.network.subnets import PSEUDO, Subnets, parse_ip
from smallstack.proto.vm import Address, Subnet
from tests.network.world import mac_for_ip

A = Subnet(id="a", ip_gateway="198.51.100.1", ip_mask="255.255.255.0")
B = Subnet(id="b", ip_gateway="203.0.113.1", ip_mask="255.255.255.128")
BOTH = Subnets([A, B])


def address(ip: str, mac: str = "") -> Address:
    return Address(ip_address=ip, mac_address=mac or mac_for_ip(ip))


def pool(*ips: str) -> AddressPool:
    return AddressPool().add([address(ip) for ip in ips], BOTH, {})


def ips(addresses: Any) -> list[str]:
    return [a.ip_address for a in addresses]


def test_first_match_and_back_to_the_end() -> None:
    made = pool("203.0.113.9", "198.51.100.8", "198.51.100.7")
    first, made = made.take(BOTH, A)
    assert first == address("198.51.100.8")
    assert ips(made.registered) == ["203.0.113.9", "198.51.100.8", "198.51.100.7"]
    made = made.release(first)
    assert ips(made.free) == ["203.0.113.9", "198.51.100.7", "198.51.100.8"]
    assert made.release(first) is made
    named, made = made.take(BOTH, A, "::ffff:198.51.100.8")
    assert named == first
    any_, _ = made.take(BOTH, B, "0.0.0.0")
    assert any_.ip_address == "203.0.113.9"


def text(call: Callable[[], object]) -> str:
    with pytest.raises((AddressError, SubnetError)) as caught:
        call()
    return str(caught.value)


def test_texts_of_taking() -> None:
    made = pool("198.51.100.8")
    assert text(lambda: AddressPool().take(BOTH, A)).startswith("no free addresses in pool")
    assert text(lambda: made.take(BOTH, B)) == "no free address in subnet: b"
    missing = "address: 198.51.100.9 not found in free pool"
    assert text(lambda: made.take(BOTH, A, "198.51.100.9")) == missing
    # In the pool, but in another subnet than the one asked for.
    assert text(lambda: made.take(BOTH, B, "198.51.100.8")).endswith("not found in free pool")


def test_texts_of_adding() -> None:
    made = pool("198.51.100.8")
    used = {"198.51.100.7": "52:54:00:00:00:07"}

    def add(*addresses: Address) -> AddressPool:
        return made.add(addresses, BOTH, used)

    assert text(lambda: add(address("192.0.2.1"))).startswith("no subnet matching: 192.0.2.1")
    assert text(lambda: add(address("198.51.100.8", "52:54:00:00:00:01"))) == (
        "duplicate IP address: 198.51.100.8"
    )
    assert text(lambda: add(address("198.51.100.9", mac_for_ip("198.51.100.8").upper()))) == (
        "duplicate MAC address: 52:54:C6:33:64:08"
    )
    twice = address("198.51.100.9")
    assert text(lambda: add(twice, twice)) == "duplicate IP address: 198.51.100.9"
    assert text(lambda: add(Address(ip_address="198.51.100.9", mac_address="x"))) == (
        "address 'x': invalid MAC address"
    )
    assert text(lambda: add(address("198.51.100.7"))) == (
        "VM 198.51.100.7 has different MAC address: 52:54:00:00:00:07 than is being added: "
        "52:54:c6:33:64:07"
    )
    assert text(lambda: add(address("198.51.100.9", "52:54:00:00:00:07"))) == (
        "VM for MAC address: 52:54:00:00:00:07 does not have IP"
    )
    taken = add(address("198.51.100.7", "52:54:00:00:00:07"))
    assert (ips(taken.free), ips(taken.registered)) == (
        ["198.51.100.8"],
        ["198.51.100.8", "198.51.100.7"],
    )
    bare = add(Address(mac_address="52:54:00:00:00:42"))
    assert bare.free[-1] == Address(mac_address="52:54:00:00:00:42")
    assert bare.free_counts(BOTH) == {"a": 1, "b": 0}


def test_removing() -> None:
    made = pool("198.51.100.8", "198.51.100.9", "203.0.113.9")
    by_ip, by_mac = Address(ip_address="198.51.100.8"), Address(mac_address="52:54:cb:00:71:09")
    assert ips(made.remove([by_ip, by_mac], {}).registered) == ["198.51.100.9"]
    assert made.remove([], {}) == made
    assert text(lambda: made.remove([by_ip], {"198.51.100.8": "x"})) == (
        "cannot remove 198.51.100.8 from free list because it is used"
    )
    _, rest = made.take(BOTH, A)
    assert text(lambda: rest.remove([by_ip], {})) == "IPs: 198.51.100.8 not in free pool"
    unknown = Address(mac_address="52:54:00:00:00:99")
    assert text(lambda: made.remove([unknown], {})) == "MACs: 52:54:00:00:00:99 not in free pool"
    odd = AddressPool(free=made.free, registered=())
    assert text(lambda: odd.remove([by_ip], {})) == "IPs: 198.51.100.8 not registered"


def test_limits() -> None:
    made = pool("198.51.100.8", "203.0.113.9", "198.51.100.9", "203.0.113.10")
    assert ips(made.limit_free({"a": 1}, BOTH).free) == [
        "198.51.100.8",
        "203.0.113.9",
        "203.0.113.10",
    ]
    assert ips(made.limit_free({"": 1}, BOTH).registered) == ["198.51.100.8", "203.0.113.9"]
    assert ips(made.limit_free({"": 2, "b": 0}, BOTH).free) == ["198.51.100.8", "198.51.100.9"]
    assert made.limit_free({"c": 0}, BOTH) == made


def test_addresses_that_come_and_go_with_a_vm() -> None:
    made = pool("198.51.100.8")
    own = address("198.51.100.50")
    with_it = made.register(own)
    assert ips(with_it.free) == ["198.51.100.8"]
    assert with_it.unregister(own) == made
    assert text(lambda: made.unregister(own)) == "198.51.100.50;52:54:c6:33:64:32 not registered"


def test_reconciled_after_a_crash() -> None:
    """An address lost between two records comes back; one that a VM has is not given again."""
    made = pool("198.51.100.7", "198.51.100.8", "198.51.100.9")
    lost, made = made.take(BOTH, A)
    after = made.reconciled([address("198.51.100.8")])
    assert ips(after.free) == ["198.51.100.9", lost.ip_address]
    assert after.registered == made.registered


def test_free_without_a_subnet_is_an_error() -> None:
    with pytest.raises(NoMatchingSubnetError):
        pool("203.0.113.9").free_counts(Subnets([A]))


@dataclass(frozen=True)
class Caller:
    username: str = "user"
    groups: frozenset[str] = frozenset()
    have_method_access: bool = False


CLOSED = Subnet(
    id="c",
    ip_gateway="192.0.2.1",
    ip_mask="255.255.255.0",
    allowed_users=["root"],
    allowed_groups=["staff"],
)


def test_choice_of_a_subnet() -> None:
    user, staff = Caller(), Caller(groups=frozenset({"staff"}))
    assert text(lambda: Subnets().choose("")).startswith("no subnets exist")
    assert text(lambda: BOTH.choose("x")) == "subnet: x does not exist"
    assert text(lambda: BOTH.choose("")) == "multiple available subnets: pick one"
    assert BOTH.choose("b") is B
    closed = Subnets([CLOSED])
    assert text(lambda: closed.choose("c", user)) == "no access to subnet: c"
    assert text(lambda: closed.choose("", user)) == "no subnets permitted"
    for caller in (staff, Caller("root"), Caller(have_method_access=True), None):
        assert closed.choose("", caller) is CLOSED
        assert closed.choose("c", caller) is CLOSED
    assert Subnets([A, CLOSED]).choose("", user) is A
    pseudo = Subnet(id=PSEUDO, ip_gateway="10.0.0.1", ip_mask="255.0.0.0")
    assert Subnets([pseudo]).choose("") is pseudo
    assert Subnets([A, pseudo]).choose("") is A
    assert Subnets([A, pseudo]).reported() == [A]


def test_updates_are_whole() -> None:
    assert [s.id for s in BOTH.updated(add=[CLOSED], delete=["a"])] == ["b", "c"]
    moved = Subnet(id="a", ip_gateway="192.0.2.1", ip_mask="255.255.255.0")
    assert BOTH.updated(change=[moved]).get("a") is moved
    assert text(lambda: BOTH.updated(add=[A])) == "subnet: a already exists"
    assert text(lambda: BOTH.updated(change=[CLOSED])) == "subnet: c does not exist"
    assert text(lambda: BOTH.updated(delete=["c"])) == "subnet: c does not exist"
    assert text(lambda: BOTH.updated(delete=["a", "a"])) == "subnet: a does not exist"
    assert text(lambda: BOTH.updated(add=[CLOSED], delete=["c"])) == "subnet: c does not exist"
    pseudo = Subnet(id=PSEUDO)
    for action, change in (
        ("add", {"add": [pseudo]}),
        ("change", {"change": [pseudo]}),
        ("delete", {"delete": [PSEUDO]}),
    ):
        call: Any = change
        assert text(lambda call=call: BOTH.updated(**call)) == f"cannot {action} hypervisor subnet"  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad",
    [
        Subnet(id="", ip_gateway="10.0.0.1", ip_mask="255.0.0.0"),
        Subnet(id="x", ip_gateway="", ip_mask="255.0.0.0"),
        Subnet(id="x", ip_gateway="10.0.0.1", ip_mask="255.0.255.0"),
        Subnet(id="x", ip_gateway="10.0.0.1", ip_mask="0.0.0.255"),
        Subnet(id="x", ip_gateway="10.0.0.1", ip_mask="24"),
        Subnet(id="x", ip_gateway="10.0.0.1", ip_mask=""),
        Subnet(id="x", ip_gateway="fe80::1", ip_mask="255.0.0.0"),
        Subnet(id="x", ip_gateway="10.0.0.1", ip_mask="255.0.0.0", domain_name_servers=["x"]),
    ],
)
def test_bad_subnets(bad: Subnet) -> None:
    with pytest.raises(BadSubnetError):
        BOTH.updated(add=[bad])


def test_matching() -> None:
    inner = Subnet(id="inner", ip_gateway="198.51.100.65", ip_mask="255.255.255.192")
    nested = Subnets([A, inner])
    assert nested.matching("198.51.100.70") is inner
    assert nested.matching("198.51.100.7") is A
    assert nested.matching("192.0.2.1") is None
    assert nested.matching("") is None
    assert BOTH.matching("203.0.113.200") is None


@given(st.binary(min_size=6, max_size=6))
def test_macs(packed: bytes) -> None:
    shown = mac_text(packed)
    assert packed_mac(shown) == packed_mac(shown.upper()) == packed
    assert packed_mac(shown.replace(":", "-")) == packed
    dotted = ".".join(packed[at : at + 2].hex() for at in (0, 2, 4))
    assert packed_mac(dotted) == packed


@given(st.text(max_size=20))
def test_not_macs_and_not_addresses(junk: str) -> None:
    for parse, error in ((packed_mac, BadMacError), (parse_ip, BadIpError)):
        call: Any = parse
        try:
            call(junk)
        except error:
            pass


class PoolMachine(RuleBasedStateMachine):
    """Any run of changes, against a plain model: who has which address."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AddressPool()
        self.used: dict[str, Address] = {}

    hosts = st.integers(2, 9)
    subnets = st.sampled_from([A, B])

    def make(self, subnet: Subnet, host: int) -> Address:
        return address(f"{subnet.ip_gateway.rsplit('.', 1)[0]}.{host}")

    @rule(subnet=subnets, host=hosts)
    def add(self, subnet: Subnet, host: int) -> None:
        one = self.make(subnet, host)
        owners = {ip: a.mac_address for ip, a in self.used.items()}
        if one in self.pool.registered:
            with pytest.raises(AddressError):
                self.pool.add([one], BOTH, owners)
        else:
            self.pool = self.pool.add([one], BOTH, owners)

    @rule(subnet=subnets, host=hosts)
    def remove(self, subnet: Subnet, host: int) -> None:
        one = self.make(subnet, host)
        if one in self.pool.free:
            self.pool = self.pool.remove([one], self.used)
        else:
            with pytest.raises(AddressError):
                self.pool.remove([one], self.used)

    @rule(subnet=subnets)
    def take(self, subnet: Subnet) -> None:
        expected = [a for a in self.pool.free if BOTH.matching(a.ip_address) is subnet]
        if not expected:
            with pytest.raises(AddressError):
                self.pool.take(BOTH, subnet)
            return
        got, self.pool = self.pool.take(BOTH, subnet)
        assert got is expected[0]
        self.used[got.ip_address] = got

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ip = data.draw(st.sampled_from(sorted(self.used)))
        self.pool = self.pool.release(self.used.pop(ip))
        assert self.pool.free[-1].ip_address == ip

    @rule(limit=st.integers(0, 4))
    def limit(self, limit: int) -> None:
        self.pool = self.pool.limit_free({"": limit}, BOTH)
        assert max(self.pool.free_counts(BOTH).values()) <= limit

    @rule()
    def crash(self) -> None:
        assert set(ips(self.pool.reconciled(list(self.used.values())).free)) == set(
            ips(self.pool.free)
        )

    @invariant()
    def nobody_loses_or_shares_an_address(self) -> None:
        free, registered = ips(self.pool.free), ips(self.pool.registered)
        assert len(set(registered)) == len(registered)
        assert sorted(free + [ip for ip in self.used if ip in registered]) == sorted(registered)


TestPool = PoolMachine.TestCase
