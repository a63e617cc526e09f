"""DHCP messages from a guest: decoded, answered, encoded; and the answer is a valid datagram."""

from ipaddress import IPv4Address, IPv4Network

from smallstack.network.dhcp.frame import datagram, internet_checksum
from smallstack.network.dhcp.leases import Event, Interface, Lease, Leases
from smallstack.network.dhcp.packet import INPUT_LIMIT, PacketError, decode, encode

MAC = bytes.fromhex("525400123456")
IP = IPv4Address("198.51.100.5")
BRIDGE = Interface("br0", (IPv4Network("198.51.100.0/24"),), (IPv4Address("198.51.100.1"),))
LEASES = Leases()
LEASES.add(
    Lease(
        MAC,
        IP,
        IPv4Network("198.51.100.0/24"),
        IPv4Address("198.51.100.1"),
        (IPv4Address("198.51.100.53"),) * 20,
        "example.org",
        "h" * 255,
    )
)


def one_input(data: bytes) -> None:
    """Nothing but PacketError for bad bytes; a reply is for the one known client and fits."""
    try:
        request = decode(data)
    except PacketError:
        return
    again = encode(request)
    if len(again) <= INPUT_LIMIT:
        assert decode(again).options == request.options
    outcome = LEASES.answer(request, BRIDGE)
    if outcome.reply is None or outcome.destination is None:
        assert outcome.event not in {Event.ACKNOWLEDGED, Event.OFFERED}
        return
    assert request.chaddr == outcome.reply.chaddr == MAC
    payload = encode(outcome.reply)
    assert len(payload) <= 1472
    assert decode(payload).options == outcome.reply.options
    packet = datagram(payload, BRIDGE.own[0], outcome.destination)
    assert internet_checksum(packet[:20]) == 0
