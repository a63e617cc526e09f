"""The lease machine: the table of decisions, and what holds for every message."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.network.dhcp.leases import (
    LEASE_SECONDS,
    LIMITED_BROADCAST,
    Event,
    Interface,
    Lease,
    Leases,
)
from smallstack.network.dhcp.packet import (
    ANY,
    MAXIMUM_SIZE,
    MessageType,
    Option,
    Packet,
    encode,
)
from smallstack.network.errors import BadSubnetError
from smallstack.proto.vm import Subnet

MAC, STRANGER = bytes.fromhex("525400000005"), bytes.fromhex("525400000099")
IP, SERVER = IPv4Address("198.51.100.5"), IPv4Address("198.51.100.2")
SUBNET = Subnet(
    id="s",
    ip_gateway="198.51.100.1",
    ip_mask="255.255.255.0",
    domain_name="example.org",
    domain_name_servers=["198.51.100.53", "203.0.113.53"],
)
BRIDGE = Interface("br0", (IPv4Network("198.51.100.0/24"),), (SERVER,))


def leases(**lease: str) -> Leases:
    made = Leases()
    made.add(Lease.of(MAC, IP, SUBNET, **lease))
    return made


def message(
    kind: MessageType, mac: bytes = MAC, options: dict[int, bytes] | None = None, **fields: Any
) -> Packet:
    chosen = {int(Option.MESSAGE_TYPE): bytes((kind,)), **(options or {})}
    return Packet(chaddr=mac, xid=77, options=chosen, **fields)


D, R, I = MessageType.DISCOVER, MessageType.REQUEST, MessageType.INFORM  # noqa: E741
ASKS = {50: IP.packed}
OTHER = {50: IPv4Address("198.51.100.9").packed}


@pytest.mark.parametrize(
    ("request_", "event", "reply", "destination"),
    [
        (message(D), Event.OFFERED, MessageType.OFFER, IP),
        (message(D, flags=0x8000), Event.OFFERED, MessageType.OFFER, LIMITED_BROADCAST),
        (message(D, options=OTHER), Event.OFFERED, MessageType.OFFER, IP),
        (message(D, options={80: b""}), Event.ACKNOWLEDGED, MessageType.ACK, IP),
        (message(D, STRANGER), Event.UNKNOWN_CLIENT, None, None),
        (message(R, options=ASKS), Event.ACKNOWLEDGED, MessageType.ACK, IP),
        (
            message(R, options=ASKS, flags=0x8000),
            Event.ACKNOWLEDGED,
            MessageType.ACK,
            LIMITED_BROADCAST,
        ),
        (message(R, ciaddr=IP), Event.ACKNOWLEDGED, MessageType.ACK, IP),
        (message(R, options=OTHER), Event.REFUSED, MessageType.NAK, LIMITED_BROADCAST),
        (
            message(R, ciaddr=IPv4Address("10.0.0.1")),
            Event.REFUSED,
            MessageType.NAK,
            LIMITED_BROADCAST,
        ),
        (message(R, options={50: b"\x01"}), Event.NO_ADDRESS, None, None),
        (message(R), Event.NO_ADDRESS, None, None),
        (message(R, options={**ASKS, 54: SERVER.packed}), Event.ACKNOWLEDGED, MessageType.ACK, IP),
        (message(R, options={**ASKS, 54: bytes(4)}), Event.ACKNOWLEDGED, MessageType.ACK, IP),
        (message(R, options={**OTHER, 54: b"\x01\x02\x03\x04"}), Event.OTHER_SERVER, None, None),
        (message(R, STRANGER, options=ASKS), Event.UNKNOWN_CLIENT, None, None),
        (message(I, ciaddr=IP), Event.INFORMED, MessageType.ACK, IP),
        (message(I, ciaddr=SERVER), Event.NO_ADDRESS, None, None),
        (message(MessageType.DECLINE, options=ASKS), Event.DECLINED, None, None),
        (message(MessageType.RELEASE, ciaddr=IP), Event.RELEASED, None, None),
        (
            message(MessageType.RELEASE, options={54: b"\x01\x02\x03\x04"}),
            Event.OTHER_SERVER,
            None,
            None,
        ),
        (message(MessageType.OFFER), Event.NOT_A_REQUEST, None, None),
        (message(MessageType.ACK), Event.NOT_A_REQUEST, None, None),
        (message(MessageType.NAK), Event.NOT_A_REQUEST, None, None),
        (message(D, op=2), Event.NOT_A_REQUEST, None, None),
        (message(D, giaddr=SERVER), Event.RELAYED, None, None),
    ],
)
def test_decisions(
    request_: Packet, event: Event, reply: MessageType | None, destination: IPv4Address | None
) -> None:
    outcome = leases().answer(request_, BRIDGE)
    assert outcome.event is event
    assert (outcome.reply and outcome.reply.message_type) == reply
    assert outcome.destination == destination


def test_the_whole_reply() -> None:
    """Without a parameter list: every option but the routes, in ascending order."""
    outcome = leases(hostname="it").answer(message(R, options={**ASKS, 61: b"\x01id"}), BRIDGE)
    assert outcome.reply == Packet(
        op=2,
        xid=77,
        yiaddr=IP,
        siaddr=SERVER,
        chaddr=MAC,
        options={
            53: b"\x05",
            54: SERVER.packed,
            51: (48 * 3600).to_bytes(4, "big"),
            61: b"\x01id",
            1: b"\xff\xff\xff\0",
            3: bytes([198, 51, 100, 1]),
            6: bytes([198, 51, 100, 53, 203, 0, 113, 53]),
            12: b"it",
            15: b"example.org",
        },
    )
    assert LEASE_SECONDS == 172800


def test_the_parameter_list_chooses_and_orders() -> None:
    asked = message(R, options={**ASKS, 55: bytes([15, 121, 99, 1, 6, 6, 3])})
    reply = leases(hostname="it").answer(asked, BRIDGE).reply
    assert reply is not None
    assert list(reply.options) == [53, 54, 51, 15, 121, 1, 6, 3]
    assert reply.options[121] == bytes([32, 169, 254, 169, 254, 0, 0, 0, 0, 0, 198, 51, 100, 1])
    none = leases().answer(message(R, options={**ASKS, 55: b""}), BRIDGE).reply
    assert none is not None
    assert list(none.options) == [53, 54, 51]


def test_no_routes_where_there_is_no_metadata() -> None:
    made = Leases()
    subnet = Subnet(
        id="s", ip_gateway="198.51.100.1", ip_mask="255.255.255.0", disable_metadata=True
    )
    made.add(Lease.of(MAC, IP, subnet))
    reply = made.answer(message(D, options={55: bytes([121, 3])}), BRIDGE).reply
    assert reply is not None
    assert list(reply.options) == [53, 54, 51, 3]


def test_refusals_say_little() -> None:
    reply = leases().answer(message(R, options=OTHER), BRIDGE).reply
    assert reply is not None
    assert list(reply.options) == [53, 54]
    assert (reply.yiaddr, reply.ciaddr, reply.siaddr) == (ANY, ANY, ANY)


def test_information_has_no_lease() -> None:
    reply = leases().answer(message(I, ciaddr=IP), BRIDGE).reply
    assert reply is not None
    assert 51 not in reply.options
    assert reply.yiaddr == ANY
    assert reply.ciaddr == IP


def test_where_the_address_cannot_be() -> None:
    """Offers are suppressed and requests refused on a link whose networks do not have it."""
    elsewhere = Interface("br1", (IPv4Network("203.0.113.0/24"),), (IPv4Address("203.0.113.1"),))
    assert leases().answer(message(D), elsewhere).event is Event.WRONG_INTERFACE
    assert leases().answer(message(R, options=ASKS), elsewhere).event is Event.REFUSED
    pinned = leases(interface="br1")
    for kind in (D, R):
        outcome = pinned.answer(message(kind, options=ASKS), BRIDGE)
        assert (outcome.event, outcome.reply) == (Event.WRONG_INTERFACE, None)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["203.0.113.1", "198.51.100.2"], "198.51.100.2"),
        (["203.0.113.1", "203.0.113.2"], "203.0.113.1"),
        ([], "198.51.100.1"),
    ],
)
def test_who_we_are(own: list[str], expected: str) -> None:
    interface = Interface("br0", (), tuple(map(IPv4Address, own)))
    reply = leases().answer(message(D), interface).reply
    assert reply is not None
    assert str(reply.siaddr) == expected
    # A request that names the address we gave ourselves is for us.
    asked = message(R, options={**ASKS, 54: reply.siaddr.packed})
    assert leases().answer(asked, interface).event is Event.ACKNOWLEDGED


def test_one_address_one_mac() -> None:
    made = leases()
    first = made.get(IP)
    moved = Lease.of(STRANGER, IP, SUBNET)
    assert made.add(moved) == [first]
    assert [*made] == [moved]
    other = Lease.of(MAC, IPv4Address("198.51.100.6"), SUBNET)
    assert made.add(other) == []
    both = Lease.of(MAC, IP, SUBNET)
    assert made.add(both) == [other, moved]
    assert len(made) == 1
    assert made.remove(IP) is both
    assert made.remove(IP) is None
    with pytest.raises(BadSubnetError):
        Lease.of(MAC, IP, Subnet(id="x", ip_gateway="1.2.3.4", ip_mask="0.255.0.255"))


@given(
    st.builds(
        Packet,
        op=st.sampled_from([1, 1, 1, 2]),
        flags=st.sampled_from([0, 0x8000]),
        ciaddr=st.sampled_from([ANY, IP, SERVER]),
        giaddr=st.sampled_from([ANY, ANY, SERVER]),
        chaddr=st.sampled_from([MAC, MAC, STRANGER]),
        xid=st.integers(0, 2**32 - 1),
        options=st.builds(
            lambda kind, rest: {**rest, 53: bytes([kind])},
            st.integers(1, 8),
            st.fixed_dictionaries(
                {},
                optional={
                    50: st.sampled_from([IP.packed, SERVER.packed, b"", b"12345"]),
                    54: st.sampled_from([SERVER.packed, IP.packed, b""]),
                    55: st.binary(max_size=300),
                    57: st.binary(max_size=3),
                    61: st.binary(max_size=300),
                    80: st.binary(max_size=2),
                },
            ),
        ),
    )
)
def test_what_holds_for_every_message(request_: Packet) -> None:
    made = leases(hostname="h" * 300)
    outcome = made.answer(request_, BRIDGE)
    reply = outcome.reply
    assert (reply is None) == (outcome.destination is None)
    assert len(made) == 1
    if reply is None:
        assert outcome.event is not Event.ACKNOWLEDGED
        return
    assert request_.chaddr == reply.chaddr == MAC
    assert (reply.op, reply.xid, reply.flags) == (2, request_.xid, request_.flags)
    assert reply.options[54] == SERVER.packed
    assert reply.yiaddr in {IP, ANY}
    assert (reply.message_type is MessageType.ACK) == (
        outcome.event in {Event.ACKNOWLEDGED, Event.INFORMED}
    )
    asked = request_.options.get(57, b"")
    limit = int.from_bytes(asked, "big") - 28 if len(asked) == 2 else 0
    assert len(encode(reply)) <= max(MAXIMUM_SIZE, min(limit, 1472))
    if 55 in request_.options:
        chosen = [c for c in reply.options if c not in {51, 53, 54, 61, 80}]
        assert chosen == [c for c in dict.fromkeys(request_.options[55]) if c in chosen]
