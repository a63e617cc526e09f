"""The init's DHCP codec and lease machine, compiled for this machine under sanitizers."""

import random
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from .conftest import Build

MAC = bytes.fromhex("525400123456")
XID = 0x12345678
COOKIE = bytes.fromhex("63825363")
SERVER = "198.51.100.1"
ADDRESS = "198.51.100.7"

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6


def ip(text: str) -> bytes:
    return socket.inet_aton(text)


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def message(
    *options: bytes,
    address: str = ADDRESS,
    xid: int = XID,
    mac: bytes = MAC,
    sname: bytes = b"",
    file: bytes = b"",
) -> bytes:
    head = struct.pack(">BBBBIHH", 2, 1, 6, 0, xid, 0, 0)
    head += bytes(4) + ip(address) + bytes(8) + mac + bytes(10)
    return head + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + COOKIE + b"".join(options)


def lease(kind: int, *more: bytes, seconds: int = 3600) -> bytes:
    return b"".join(
        [
            option(53, bytes([kind])),
            option(54, ip(SERVER)),
            option(51, struct.pack(">I", seconds)),
            option(1, ip("255.255.255.0")),
            option(3, ip(SERVER)),
            *more,
            b"\xff",
        ]
    )


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(payload: bytes, **changes: int) -> bytes:
    fields = {"version": 0x45, "fragment": 0, "protocol": 17, "source": 67, "target": 68} | changes
    udp = struct.pack(">HHHH", fields["source"], fields["target"], len(payload) + 8, 0xDEAD)
    udp += payload
    header = struct.pack(
        ">BBHHHBBH4s4s",
        fields["version"],
        0,
        fields.get("total", 20 + len(udp)),
        0,
        fields["fragment"],
        64,
        fields["protocol"],
        0,
        ip(SERVER),
        ip("255.255.255.255"),
    )
    total = fields.get("checksum", checksum(header))
    return header[:10] + struct.pack(">H", total) + header[12:] + udp


class Tool:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, *words: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the program died"
        return answer.strip()

    def parse(self, data: bytes) -> str:
        return self.ask("parse", MAC.hex(), f"{XID:x}", data.hex())

    def packet(self, data: bytes) -> str:
        return self.ask("packet", MAC.hex(), f"{XID:x}", data.hex())

    def start(self, now: int = 1000) -> dict[str, str]:
        return fields(self.ask("start", MAC.hex(), f"{XID:x}", now))

    def timeout(self, now: int) -> dict[str, str]:
        return fields(self.ask("timeout", now))

    def reply(self, now: int, data: bytes) -> dict[str, str]:
        return fields(self.ask("reply", now, data.hex()))

    def query(self) -> tuple[bytes, dict[int, bytes]]:
        """The BOOTP message it wants sent, and its options."""
        raw = bytes.fromhex(self.ask("query"))
        assert checksum(raw[:20]) == 0
        pseudo = raw[12:20] + struct.pack(">HH", 17, len(raw) - 20)
        assert checksum(pseudo + raw[20:] + b"\0" * (len(raw) % 2)) == 0
        bootp = raw[28:]
        assert bootp[236:240] == COOKIE
        options, rest = {}, bootp[240:]
        while rest[0] != 255:
            options[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        return bootp, options


def fields(answer: str) -> dict[str, str]:
    words = answer.split()
    result = dict(word.split("=", 1) for word in words if "=" in word)
    result["state"] = words[0]
    result["actions"] = " ".join(word for word in words[1:] if "=" not in word)
    return result


@pytest.fixture
def tool(host_program: Build) -> Iterator[Tool]:
    program = host_program("dhcp_tool", ["dhcp_packet", "dhcp_lease"])
    with subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Tool(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def test_every_option_of_a_reply(tool: Tool) -> None:
    routes = bytes([32]) + ip("169.254.169.254") + ip("0.0.0.0") + bytes([0]) + ip(SERVER)
    routes += bytes([12, 10, 0xFF]) + ip("198.51.100.9")
    got = tool.parse(
        message(
            lease(
                ACK,
                option(6, ip(SERVER) + ip("192.0.2.53")),
                option(12, b"vm-7"),
                option(15, b"example.org\0"),
                option(26, struct.pack(">H", 1400)),
                option(58, struct.pack(">I", 100)),
                option(59, struct.pack(">I", 200)),
                option(80, b""),
                option(121, routes),
            )
        )
    )
    assert got == (
        "ok type=5 rapid=1 address=198.51.100.7 server=198.51.100.1 mask=255.255.255.0 "
        "router=198.51.100.1 dns=198.51.100.1 dns=192.0.2.53 "
        "route=169.254.169.254/32 via=0.0.0.0 route=0.0.0.0/0 via=198.51.100.1 "
        "route=10.240.0.0/12 via=198.51.100.9 "
        "mtu=1400 lease=3600 renew=100 rebind=200 host=vm-7 domain=example.org"
    )


def test_options_that_overflow_into_name_and_file(tool: Tool) -> None:
    got = tool.parse(
        message(
            option(52, b"\x03") + option(53, bytes([ACK])) + b"\xff",
            sname=option(12, b"vm-8") + b"\xff",
            file=option(1, ip("255.255.0.0")) + b"\xff",
        )
    )
    assert "host=vm-8" in got
    assert "mask=255.255.0.0" in got


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (option(12, b"-x"), "host= "),
        (option(12, b"a b"), "host= "),
        (option(12, b"x" * 64), "host= "),
        (option(12, b"a\nnameserver 1.2.3.4"), "host= "),
        (option(1, ip("255.0.255.0")), "mask=255.255.255.0"),
        (option(26, b"\0\x10"), "mtu=0"),
        (option(26, b"\x05"), "mtu=0"),
        (option(3, b"\x01\x02"), "router=198.51.100.1"),
        (option(121, bytes([33]) + bytes(9)), "mtu=0"),
        (option(6, ip(SERVER) * 9), "dns=198.51.100.1 dns=198.51.100.1 dns=198.51.100.1 mtu"),
        (option(200, b"whatever"), "type=5"),
        (b"\0\0\0", "type=5"),
    ],
)
def test_odd_options_do_not_spoil_the_rest(tool: Tool, changed: bytes, expected: str) -> None:
    got = tool.parse(message(lease(ACK)[:-1] + changed + b"\xff"))
    assert got.startswith("ok type=5")
    assert expected in got


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(lease(ACK))[:239],
        message(lease(ACK), xid=XID + 1),
        message(lease(ACK), mac=bytes(6)),
        b"\x01" + message(lease(ACK))[1:],
        message(lease(ACK)).replace(COOKIE, b"\0\0\0\0"),
        message(option(53, bytes([ACK])) + b"\x01"),
        message(option(53, bytes([ACK])) + b"\x01\x04\xff"),
        message(option(53, bytes([DISCOVER])) + b"\xff"),
        message(b"\xff"),
        message(lease(OFFER), address="0.0.0.0"),
        message(lease(ACK), address="127.0.0.1"),
        message(lease(ACK), address="255.255.255.255"),
        message(option(52, b"\x01") + lease(ACK), file=b"\x0c\xff"),
    ],
)
def test_what_is_no_answer_is_refused(tool: Tool, data: bytes) -> None:
    assert tool.parse(data) == "error 74"


def test_the_headers_of_a_packet(tool: Tool) -> None:
    payload = message(lease(ACK))
    assert tool.packet(packet(payload)).startswith("ok")
    assert tool.packet(packet(payload) + b"padding").startswith("ok")
    for changed in (
        packet(payload, version=0x65),
        packet(payload, version=0x44),
        packet(payload, protocol=6),
        packet(payload, fragment=0x2000),
        packet(payload, source=68),
        packet(payload, target=67),
        packet(payload, total=2000),
        packet(payload, total=24),
        packet(payload, checksum=1),
        packet(payload)[:27],
        packet(payload)[:24] + b"\xff\xff" + packet(payload)[26:],
    ):
        assert tool.packet(changed) == "error 74"


def test_truncated_and_damaged_messages_never_crash(tool: Tool) -> None:
    chosen = random.Random(2)
    whole = message(lease(ACK, option(121, bytes([24]) + ip("10.0.0.1")[:3] + ip(SERVER))))
    for size in range(0, len(whole), 7):
        tool.parse(whole[:size])
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chosen.randrange(1, 6)):
            data[chosen.randrange(240, len(data))] = chosen.randrange(256)
        tool.parse(bytes(data))


def test_discover_offer_request_ack(tool: Tool) -> None:
    assert tool.start()["actions"] == "send"
    bootp, options = tool.query()
    assert bootp[:4] == bytes([1, 1, 6, 0])
    assert bootp[4:8] == struct.pack(">I", XID)
    assert bootp[28:34] == MAC
    assert len(bootp) >= 300
    assert options[53] == bytes([DISCOVER])
    assert options[80] == b""
    assert {1, 3, 6, 12, 15, 51, 54, 121} <= set(options[55])

    got = tool.reply(1010, message(lease(OFFER)))
    assert (got["state"], got["actions"]) == ("requesting", "send")
    bootp, options = tool.query()
    assert options[53] == bytes([REQUEST])
    assert (options[50], options[54]) == (ip(ADDRESS), ip(SERVER))
    assert 80 not in options
    assert bootp[12:16] == bytes(4)

    got = tool.reply(1020, message(lease(ACK)))
    assert (got["state"], got["actions"]) == ("bound", "apply")
    assert got["deadline"] == str(1020 + 1800 * 1000)


def test_rapid_commit_saves_the_request(tool: Tool) -> None:
    tool.start()
    assert tool.reply(1005, message(lease(ACK)))["state"] == "selecting"
    got = tool.reply(1010, message(lease(ACK, option(80, b""))))
    assert (got["state"], got["actions"]) == ("bound", "apply")


def test_an_unanswered_discover_comes_again_ever_more_slowly(tool: Tool) -> None:
    got = tool.start(0)
    waits, now = [], 0
    for _ in range(12):
        deadline = int(got["deadline"])
        waits.append(deadline - now)
        now = deadline
        got = tool.timeout(now)
        assert (got["state"], got["actions"]) == ("selecting", "send")
    for index, wait in enumerate(waits):
        nominal = min(250 * 2**index, 16000)
        assert nominal * 0.79 <= wait <= nominal * 1.21
    assert tool.query()[0][8:10] == struct.pack(">H", now // 1000)


def test_an_unanswered_request_starts_over_with_another_number(tool: Tool) -> None:
    tool.start(0)
    got = tool.reply(10, message(lease(OFFER)))
    for _ in range(3):
        got = tool.timeout(int(got["deadline"]))
        assert got["state"] == "requesting"
    got = tool.timeout(int(got["deadline"]))
    assert (got["state"], got["actions"]) == ("selecting", "send")
    assert got["xid"] != f"{XID:08x}"


def test_a_refusal_waits_a_while_before_it_starts_over(tool: Tool) -> None:
    tool.start(0)
    tool.reply(10, message(lease(OFFER)))
    got = tool.reply(20, message(lease(NAK)))
    assert (got["state"], got["actions"]) == ("selecting", "")
    assert 700 <= int(got["deadline"]) <= 1300
    assert tool.timeout(int(got["deadline"]))["actions"] == "send"


def test_another_address_than_asked_for_is_not_taken(tool: Tool) -> None:
    tool.start(0)
    tool.reply(10, message(lease(OFFER)))
    got = tool.reply(20, message(lease(ACK), address="198.51.100.8"))
    assert (got["state"], got["actions"]) == ("requesting", "")


def bound(tool: Tool, seconds: int, *more: bytes) -> dict[str, str]:
    tool.start(0)
    tool.reply(0, message(lease(OFFER)))
    return tool.reply(0, message(lease(ACK, *more, seconds=seconds)))


def test_renewing_then_rebinding_then_giving_up(tool: Tool) -> None:
    got = bound(tool, 1000)
    assert got["deadline"] == "500000"
    got = tool.timeout(500000)
    assert (got["state"], got["actions"], got["unicast"]) == ("renewing", "send", "1")
    bootp, options = tool.query()
    assert bootp[12:16] == ip(ADDRESS)
    assert 50 not in options
    assert 54 not in options
    assert got["deadline"] == str(500000 + 375000 // 2)
    states = []
    while got["actions"] != "send drop":
        states.append((got["state"], got["unicast"]))
        got = tool.timeout(int(got["deadline"]))
    assert states == sorted(states, reverse=True)
    assert set(states) == {("renewing", "1"), ("rebinding", "0")}
    assert got["state"] == "selecting"


def test_a_renewed_lease_runs_from_the_ack(tool: Tool) -> None:
    bound(tool, 1000)
    got = tool.timeout(500000)
    answer = message(lease(ACK, seconds=2000), xid=int(got["xid"], 16))
    got = tool.reply(500100, answer)
    assert (got["state"], got["actions"]) == ("bound", "apply")
    assert got["deadline"] == str(500100 + 1000 * 1000)


def test_a_refused_renewal_drops_the_address(tool: Tool) -> None:
    bound(tool, 1000)
    got = tool.timeout(500000)
    got = tool.reply(500100, message(lease(NAK), xid=int(got["xid"], 16)))
    assert (got["state"], got["actions"]) == ("selecting", "drop")


def test_a_lease_for_ever_is_never_renewed(tool: Tool) -> None:
    assert bound(tool, 0xFFFFFFFF)["deadline"] == "-1"


@pytest.mark.parametrize("seconds", [1, 2, 7, 59])
def test_times_of_a_short_lease_stay_in_order(tool: Tool, seconds: int) -> None:
    got = bound(tool, seconds, option(58, b"\xff\xff\xff\xff"), option(59, b"\xff\xff\xff\xff"))
    last = 0
    while got["actions"] != "send drop":
        deadline = int(got["deadline"])
        assert last <= deadline <= seconds * 1000
        last = deadline
        got = tool.timeout(deadline)
