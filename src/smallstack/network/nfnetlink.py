"""nf_tables over nfnetlink: just the messages that the guard needs, in the bridge family.

pyroute2 has the socket but not sets of concatenated keys, maps of data or several commands in
one transaction, and builds a message thirty times slower than `struct`.

Layout: include/uapi/linux/netlink.h, netfilter/nfnetlink.h, netfilter/nf_tables.h. Attribute
payloads are big-endian, headers are in host order. A transaction is the messages between
BATCH_BEGIN and BATCH_END; the kernel takes all of them or none.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final

BRIDGE: Final = 7  # NFPROTO_BRIDGE
_INET, _IPV4 = 1, 2

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _DEL_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_GET_CHAIN = 4
_NEW_SET, _NEW_ELEMENT, _GET_ELEMENT, _DEL_ELEMENT = 9, 12, 13, 14
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SEND_BUFFER = 4 << 20

PREROUTING, FORWARD, POSTROUTING = 0, 2, 4
DSTNAT_PRIORITY: Final = -300  # NF_BR_PRI_NAT_DST_BRIDGED
FILTER_PRIORITY: Final = 0

# Key and data types as `nft list` shows them; a concatenation is its parts, six bits each.
ETHER_ADDR, IPV4_ADDR, IFNAME = 9, 7, 41
IFNAME_LENGTH: Final = 16
MAP: Final = 8  # NFT_SET_MAP

DROP, ACCEPT, JUMP = 0, 1, -3
LINK, NETWORK, TRANSPORT = 0, 1, 2
META_PROTOCOL, META_IIFNAME, META_OIFNAME, META_L4PROTO = 1, 6, 7, 16
REGISTER: Final = 1  # the first of 16 bytes; 32-bit register n is 8 + n


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + bytes(-size % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | 0x8000, b"".join(parts))


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i" if value < 0 else ">I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _bare(name: str, *parts: bytes) -> bytes:
    return _text(1, name) + nested(2, *parts)


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, _bare(name, *parts))


# Expressions of a rule, in the order in which the kernel runs them.


def meta(key: int, register: int = REGISTER) -> bytes:
    """Load a property of the packet."""
    return _expression("meta", _be32(1, register), _be32(2, key))


def payload(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    """Load ``length`` bytes of the packet; a packet that is too short does not match."""
    return _expression(
        "payload", _be32(1, register), _be32(2, base), _be32(3, offset), _be32(4, length)
    )


def store(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    """Write a register into the packet, without touching any checksum."""
    return _expression(
        "payload",
        _be32(5, register),
        _be32(2, base),
        _be32(3, offset),
        _be32(4, length),
        _be32(6, 0),
        _be32(7, 0),
        _be32(8, 0),
    )


def compare(value: bytes, register: int = REGISTER) -> bytes:
    """Go on only if the register begins with ``value``."""
    return _expression("cmp", _be32(1, register), _be32(2, 0), nested(3, attribute(1, value)))


def mask(value: bytes, register: int = REGISTER) -> bytes:
    """And the register with ``value``."""
    return _expression(
        "bitwise",
        _be32(1, register),
        _be32(2, register),
        _be32(3, len(value)),
        nested(4, attribute(1, value)),
        nested(5, attribute(1, bytes(len(value)))),
    )


def lookup(set_name: str, register: int = REGISTER, into: int | None = None) -> bytes:
    """Go on only if the key at ``register`` is in the set; ``into`` takes a map's value."""
    parts = [_text(1, set_name), _be32(2, register)]
    if into is not None:
        parts.append(_be32(3, into))
    return _expression("lookup", *parts)


def over_rate(per_second: int, burst: int) -> bytes:
    """For `Batch.add_set`: a lookup matches only from this many packets a second on."""
    return _bare(
        "limit",
        attribute(1, struct.pack(">Q", per_second)),
        attribute(2, struct.pack(">Q", 1)),
        _be32(3, burst),
        _be32(4, 0),  # packets
        _be32(5, 1),  # NFT_LIMIT_F_INV
    )


def verdict(code: int, chain: str = "") -> bytes:
    """Decide: DROP, ACCEPT, or JUMP to ``chain``."""
    parts = [_be32(1, code)]
    if chain:
        parts.append(_text(2, chain))
    return _expression("immediate", _be32(1, 0), nested(2, nested(2, *parts)))


def counter() -> bytes:
    """Count the packets that come this far; `nft list` shows them."""
    return _expression("counter")


def ifname(name: str) -> bytes:
    """An interface name as a key."""
    return name.encode().ljust(IFNAME_LENGTH, b"\0")


class Batch:
    """Messages of one transaction on one table."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._messages: list[tuple[int, int, bytes]] = []

    def __len__(self) -> int:
        return len(self._messages)

    def add_table(self) -> None:
        """Make the table if it is not there."""
        self._put(_NEW_TABLE, _CREATE, _text(1, self.table), _be32(2, 0))

    def delete_table(self) -> None:
        """Remove the table and all in it; it must exist."""
        self._put(_DEL_TABLE, 0, _text(1, self.table))

    def add_chain(self, name: str, hook: int | None = None, priority: int = 0) -> None:
        """A chain to jump to or, with a ``hook``, one where packets come in; its policy accepts."""
        parts = [_text(1, self.table), _text(3, name)]
        if hook is not None:
            parts += [
                nested(4, _be32(1, hook), attribute(2, struct.pack(">i", priority))),
                _be32(5, ACCEPT),
                _text(7, "filter"),
            ]
        self._put(_NEW_CHAIN, _CREATE, *parts)

    def add_rule(self, chain: str, *expressions: bytes) -> None:
        """A rule at the end of the chain."""
        self._put(
            _NEW_RULE,
            _CREATE | _APPEND,
            _text(1, self.table),
            _text(2, chain),
            nested(4, *expressions),
        )

    def add_set(
        self, name: str, key: Sequence[int], value: int | None = None, each: bytes | None = None
    ) -> None:
        """A set, or with a ``value`` type a map. Keys are types in the order of the registers.

        ``each`` is a stateful expression, such as `over_rate`, of which every element has its own.
        """
        key_type = 0
        for part in key:
            key_type = key_type << 6 | part
        parts = [
            _text(1, self.table),
            _text(2, name),
            _be32(3, 0 if value is None else MAP),
            _be32(4, key_type),
            _be32(5, sum(map(_register_length, key))),
        ]
        if value is not None:
            parts += [_be32(6, value), _be32(7, _length(value))]
        if each is not None:
            parts.append(nested(17, each))
        if list(key) == [IFNAME]:
            # For `nft list` alone, which else takes a name for a big-endian number: a host-endian
            # key, libnftnl's NFTNL_UDATA_SET_KEYBYTEORDER.
            parts.append(attribute(13, struct.pack("=BBI", 0, 4, 1)))
        # Within a transaction sets are told apart by a number; names are looked up first.
        parts.append(_be32(10, len(self._messages) + 1))
        self._put(_NEW_SET, _CREATE, *parts)

    def add_elements(self, name: str, elements: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put elements, each a key and a map's value; those that are there already stay."""
        self._elements(_NEW_ELEMENT, _CREATE, name, elements)

    def delete_elements(self, name: str, keys: Iterable[bytes]) -> None:
        """Remove elements; all of them must be there."""
        self._elements(_DEL_ELEMENT, 0, name, ((key, None) for key in keys))

    def _elements(
        self, command: int, flags: int, name: str, elements: Iterable[tuple[bytes, bytes | None]]
    ) -> None:
        listed = []
        for key, value in elements:
            parts = [nested(1, attribute(1, key))]
            if value is not None:
                parts.append(nested(2, attribute(1, value)))
            listed.append(nested(1, *parts))
        # An attribute is at most 64 KiB long.
        for start in range(0, len(listed), 256):
            self._put(
                command,
                flags,
                _text(1, self.table),
                _text(2, name),
                nested(3, *listed[start : start + 256]),
            )

    def _put(self, command: int, flags: int, *parts: bytes) -> None:
        self._messages.append((command, flags, b"".join(parts)))

    def encode(self, family: int = BRIDGE) -> bytes:
        """The whole transaction; message n of it (from 1) has sequence number n."""
        out = [_message(_BATCH_BEGIN, _REQUEST, 0, 0, 10, b"")]
        for number, (command, flags, body) in enumerate(self._messages, 1):
            kind = _SUBSYSTEM | command
            out.append(_message(kind, _REQUEST | _ACK | flags, number, family, 0, body))
        out.append(_message(_BATCH_END, _REQUEST, len(self._messages) + 1, 0, 10, b""))
        return b"".join(out)


class Socket:
    """A netfilter socket of the calling thread's network namespace. Blocking calls, no waiting:
    the kernel has answered by the time `send` returns."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12
        )  # NETLINK_NETFILTER
        self._socket.bind((0, 0))
        # A transaction goes in one piece: this is room for some ten thousand elements.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, 32, _SEND_BUFFER)  # SO_SNDBUFFORCE
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        # The kernel echoes a failed message whole unless told not to: SOL_NETLINK, NETLINK_CAP_ACK.
        self._socket.setsockopt(270, 10, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def commit(self, batch: Batch) -> None:
        """Run a transaction. Raises OSError with the kernel's errno; then nothing has changed."""
        if not len(batch):
            return
        self._drain()
        self._socket.send(batch.encode())
        answers = 0
        while answers < len(batch):
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise OSError(errno.EPROTO, "the kernel did not answer") from None
            for kind, _sequence, body in _messages(data):
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        self._drain()
                        raise OSError(code, os.strerror(code))
                    answers += 1

    def elements(self, table: str, set_name: str, family: int = BRIDGE) -> list[bytes]:
        """The keys of a set. Raises OSError."""
        body = _text(1, table) + _text(2, set_name)
        return [
            attributes(attributes(listed)[1][0])[1][0]
            for answer in self._dump(_GET_ELEMENT, family, body)
            for listed in attributes(attributes(answer).get(3, [b""])[0]).get(1, [])
        ]

    def has_forward_filter(self) -> bool:
        """Whether any chain, of nft or of iptables over it, looks at forwarded IPv4 packets."""
        for family in (_IPV4, _INET):
            for answer in self._dump(_GET_CHAIN, family):
                hook = attributes(attributes(answer).get(4, [b""])[0]).get(1, [b""])[0]
                if int.from_bytes(hook, "big") == FORWARD:
                    return True
        return False

    def _dump(self, command: int, family: int, body: bytes = b"") -> list[bytes]:
        """The attributes of everything there is of a kind."""
        self._drain()
        kind = _SUBSYSTEM | command
        self._socket.send(_message(kind, _REQUEST | _DUMP, 1, family, 0, body))
        found: list[bytes] = []
        while True:
            for answered, _sequence, answer in _messages(self._socket.recv(1 << 20)):
                if answered == _NLMSG_DONE:
                    return found
                if answered == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer)[0]
                    raise OSError(code, os.strerror(code))
                found.append(answer[4:])

    def _drain(self) -> None:
        try:
            while True:
                self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass


def attributes(data: bytes) -> dict[int, list[bytes]]:
    """The payloads of a run of attributes by kind."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found.setdefault(kind & 0x3FFF, []).append(data[at + 4 : at + size])
        at += (size + 3) & ~3
    return found


def _length(kind: int) -> int:
    return {ETHER_ADDR: 6, IPV4_ADDR: 4, IFNAME: IFNAME_LENGTH}[kind]


def _register_length(kind: int) -> int:
    return (_length(kind) + 3) & ~3


def _message(
    kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes
) -> bytes:
    head = struct.pack("=IHHII", 20 + len(body), kind, flags, sequence, 0)
    return head + struct.pack(">BBH", family, 0, resource) + body


def _messages(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        size, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", data, at)
        if size < 16:
            return
        yield kind, sequence, data[at + 16 : at + size]
        at += (size + 3) & ~3
