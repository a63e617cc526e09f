"""HTTP heads and metadata routes without a network: bytes and paths in, answers out."""

import base64
import http.client
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.network.metadata.http import (
    FORWARDED_FOR,
    HEAD_LIMIT,
    TOKEN,
    TOKEN_SECONDS,
    HttpError,
    Reader,
    Request,
    response_head,
)
from smallstack.network.metadata.pace import Pace
from smallstack.network.metadata.routes import (
    CREDENTIALS,
    IDENTITY,
    PATHS,
    TEXT,
    TOKEN_PATH,
    File,
    Missing,
    Refused,
    Rules,
    Signed,
    Text,
    Token,
    TokensFor,
    answer,
)
from smallstack.network.metadata.tokens import MAX_SECONDS, Tokens, seconds_asked
from smallstack.network.metadata.tracers import Tracers
from smallstack.proto.kinds import Time
from smallstack.proto.vm import Address, VmInfo


@dataclass
class View:
    info: VmInfo
    user_data: Path | None = None
    credentials: Path | None = None


VM = View(VmInfo(address=Address(ip_address="198.51.100.5", mac_address="52:54:00:00:00:05")))


NOW = 1_700_000_000_000_000_007
SECOND = 1_000_000_000


def ask(path: str, vm: View | None = VM) -> object:
    return answer(Request("GET", path), vm, NOW, Rules())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/datasource/SmallStack", "true\n"),
        ("/latest/is-externally-patchable", "true\n"),
        ("/latest/dynamic/epoch-time", "1700000000.000000007\n"),
        ("/", "datasource\nlatest\nnocloud\n"),
        ("/latest", "dynamic\nis-externally-patchable\nuser-data\n"),
        ("/latest/", "dynamic\nis-externally-patchable\nuser-data\n"),
        ("/latest/dynamic/", "epoch-time\ninstance-identity\n"),
        (
            "/latest/dynamic/instance-identity/Ed25519-S",
            "SH-certificate\nSH-key\n",
        ),
        ("/lat", "est\n"),
        (
            "/*",
            "datasource/SmallStack\nlatest/dynamic/epoch-time\n"
            "latest/dynamic/instance-identity/Ed25519-SSH-certificate\n"
            "latest/dynamic/instance-identity/Ed25519-SSH-key\n"
            "latest/dynamic/instance-identity/Ed25519-X.509-certificate\n"
            "latest/dynamic/instance-identity/Ed25519-X.509-key\n"
            "latest/dynamic/instance-identity/RSA-SSH-certificate\n"
            "latest/dynamic/instance-identity/RSA-SSH-key\n"
            "latest/dynamic/instance-identity/RSA-X.509-certificate\n"
            "latest/dynamic/instance-identity/RSA-X.509-key\n"
            "latest/dynamic/instance-identity/X.509-certificate\n"
            "latest/dynamic/instance-identity/X.509-key\n"
            "latest/dynamic/instance-identity/document\n"
            "latest/dynamic/instance-identity/signature\nlatest/is-externally-patchable\n"
            "latest/user-data\nnocloud/meta-data\nnocloud/user-data\nnocloud/vendor-data\n",
        ),
    ],
)
def test_text(path: str, expected: str) -> None:
    assert ask(path) == Text(expected.encode())


def test_document() -> None:
    found = cast(Text, ask("/latest/dynamic/instance-identity/document"))
    assert found.body.startswith(
        b'{\n    "Address": {\n        "IpAddress": "198.51.100.5",\n'
        b'        "MacAddress": "52:54:00:00:00:05"\n    },\n'
    )
    assert b'\n    "State": "starting"' in found.body
    assert found.body.endswith(b"\n}\n")


def test_nocloud() -> None:
    info = VmInfo(
        address=VM.info.address, hostname='a"b', created_on=Time(unix_seconds=7, nanoseconds=8)
    )
    told = cast(Text, ask("/nocloud/meta-data", View(info)))
    assert json.loads(told.body) == {"instance-id": "198.51.100.5-7", "local-hostname": 'a"b'}
    info.hostname = ""
    told = cast(Text, ask("/nocloud/meta-data", View(info)))
    assert json.loads(told.body) == {"instance-id": "198.51.100.5-7"}
    assert ask("/nocloud/user-data") == Text(b"")
    assert ask("/nocloud/user-data", View(info, Path("/x"))) == File(Path("/x"), b"")
    assert ask("/nocloud/vendor-data") == Text(b"")


def test_user_data() -> None:
    assert ask("/latest/user-data") == Missing()
    assert ask("/latest/user-data", View(VM.info, Path("/x"))) == File(Path("/x"))


@pytest.mark.parametrize(
    "path", ["", "*", "//", "/latest//", "/latest/user-data/", "/latest/meta-data", "latest", "/x"]
)
def test_missing(path: str) -> None:
    assert ask(path) == Missing()


@given(st.one_of(st.sampled_from(sorted(PATHS)), st.text(max_size=60)))
def test_strangers_get_nothing(path: str) -> None:
    assert ask(path, None) == Missing()
    assert isinstance(ask(path), Text | Missing | Signed | Refused)


def test_credentials() -> None:
    vm = View(VM.info, credentials=Path("/vms/it"))
    for name, file in CREDENTIALS.items():
        assert ask(f"{IDENTITY}/{name}") == Missing()
        assert ask(f"{IDENTITY}/{name}", vm) == File(Path("/vms/it") / file, content_type=TEXT)


def test_the_signature_is_of_the_document() -> None:
    document = cast(Text, ask(f"{IDENTITY}/document"))
    assert ask(f"{IDENTITY}/signature") == Signed(document.body)


# Tokens

TOKENS = Tokens(b"k" * 32)


def token(
    headers: dict[str, str] | None = None, method: str = "PUT", vm: View | None = VM
) -> object:
    request = Request(method, TOKEN_PATH, headers=headers or {})
    return answer(request, vm, NOW, Rules(tokens=TOKENS))


def show(
    path: str, shown: str, vm: View = VM, now: int = NOW, tokens_for: TokensFor = "nothing"
) -> object:
    request = Request("GET", path, headers={TOKEN: shown} if shown else {})
    return answer(request, vm, now, Rules(tokens=TOKENS, tokens_for=tokens_for))


def test_a_token_is_had_by_put() -> None:
    made = token({TOKEN_SECONDS: "60"})
    assert isinstance(made, Token)
    assert (len(made.body), made.seconds) == (56, 60)
    for method in ("GET", "HEAD", "POST"):
        assert token({TOKEN_SECONDS: "60"}, method) == Refused(405)
    assert token({TOKEN_SECONDS: "60", FORWARDED_FOR: ""}) == Refused(403)
    assert token({TOKEN_SECONDS: "60"}, vm=None) == Missing()


@pytest.mark.parametrize("text", ["", "0", "21601", "-1", "1.5", "60 ", "6_0", "٣", "000060", "x"])
def test_nobody_gets_a_token_for_another_time(text: str) -> None:
    assert seconds_asked(text) is None
    assert token({TOKEN_SECONDS: text}) == Refused(400)


def test_a_token_is_good_for_its_vm_and_its_time() -> None:
    assert seconds_asked(str(MAX_SECONDS)) == MAX_SECONDS
    made = cast(Token, token({TOKEN_SECONDS: "60"})).body.decode()
    path = "/datasource/SmallStack"
    assert show(path, made) == Text(b"true\n")
    assert show(path, made, now=NOW + 60 * SECOND - 1) == Text(b"true\n")
    assert show(path, made, now=NOW + 60 * SECOND) == Refused(401)
    other = View(VmInfo(address=Address(ip_address="198.51.100.6")))
    later = View(VmInfo(address=VM.info.address, created_on=Time(unix_seconds=9)))
    assert show(path, made, other) == show(path, made, later) == Refused(401)
    assert not Tokens().is_good(made, VM.info, NOW)


@given(st.text(max_size=80) | st.binary(min_size=40, max_size=40).map(lambda raw: raw.hex()[:56]))
def test_what_is_no_token_is_refused(text: str) -> None:
    assert not TOKENS.is_good(text, VM.info, NOW)


@given(st.integers(0, 40 * 8 - 1), st.integers(1, MAX_SECONDS))
def test_a_turned_bit_is_noticed(bit: int, seconds: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TOKENS.issue(VM.info, seconds, NOW)))
    raw[bit // 8] ^= 1 << bit % 8
    assert not TOKENS.is_good(base64.urlsafe_b64encode(raw).decode(), VM.info, NOW)


def test_what_needs_a_token() -> None:
    good = TOKENS.issue(VM.info, 60, NOW).decode()
    key, data = f"{IDENTITY}/X.509-key", "/latest/is-externally-patchable"
    for path in (key, data, "/*", "/latest/", "/none"):
        assert show(path, "", tokens_for="nothing") == ask(path)
        assert show(path, "bad") == Refused(401)
        assert show(path, good, tokens_for="credentials") == ask(path)
        assert show(path, good, tokens_for="everything") == ask(path)
        assert show(path, "", tokens_for="everything") == Refused(401)
        held = show(path, "", tokens_for="credentials")
        assert held == (Refused(401) if path == key else ask(path))
    for path in ("/datasource/SmallStack", "/nocloud/meta-data", "/nocloud/user-data"):
        assert show(path, "", tokens_for="everything") == ask(path)


# HTTP


def read(data: bytes, step: int = 0) -> list[Request]:
    reader, found = Reader(), []
    for at in range(0, len(data), step or len(data) or 1):
        reader.feed(data[at : at + (step or len(data))])
        while (request := reader.next_request()) is not None:
            found.append(request)
    return found


@pytest.mark.parametrize("step", [0, 1, 7])
def test_requests(step: int) -> None:
    data = (
        b"GET /a%20b?q#f HTTP/1.1\r\nHost: x\r\n\r\n"
        b"\r\nHEAD http://169.254.169.254/c HTTP/1.1\nConnection: Close\n\n"
        b"GET http://169.254.169.254 HTTP/1.0\r\n\r\n"
        b"GET /d HTTP/1.0\r\nConnection: x, keep-alive\r\n\r\n"
        b"PUT /e HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
        b"OPTIONS * HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
        b"GET /f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert read(data, step) == [
        Request("GET", "/a b", True),
        Request("HEAD", "/c", False),
        Request("GET", "/", False),
        Request("GET", "/d", True),
        Request("PUT", "/e", False),
        Request("OPTIONS", "*", True),
        Request("GET", "/f", False),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"G(T / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTX/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET x HTTP/1.1\r\n\r\n", 400),
        (b"GET ftp://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: x\ry\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"G" * HEAD_LIMIT, 431),
        (b"GET /" + b"x" * HEAD_LIMIT + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_refused(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        read(data)
    assert caught.value.status == status


@given(st.binary(max_size=300), st.integers(1, 50))
def test_nonsense(data: bytes, step: int) -> None:
    """However it is cut up, the same bytes give the same requests or the same refusal."""

    def run(size: int) -> tuple[list[Request], str]:
        try:
            return read(data, size), ""
        except HttpError as error:
            return [], str(error)

    assert run(step)[1] == run(0)[1]
    if not run(0)[1]:
        assert run(step) == run(0)


class Wire:
    """What http.client reads from instead of a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self.data)


@pytest.mark.parametrize("status", [200, 400, 404, 431, 505])
def test_response(status: int) -> None:
    head = response_head(status, 4, "text/plain", keep_alive=True, now=1_700_000_000.5)
    reply = http.client.HTTPResponse(cast("http.client.socket", Wire(head + b"bodyrest")))  # type: ignore[name-defined]
    reply.begin()
    assert (reply.status, reply.read()) == (status, b"body")
    assert reply.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert reply.headers["Connection"] == "keep-alive"


async def test_tracers_bound_what_waits() -> None:
    tracers = Tracers()
    tracer = tracers.open("198.51.100.5")
    for number in range(100):
        tracers.offer("198.51.100.5", f"/{number}")
    tracers.end("198.51.100.5")
    tracer.close()
    tracers.offer("198.51.100.5", "/late")
    assert [path async for path in tracer] == [f"/{number}" for number in range(16)]


@given(st.lists(st.floats(0, 10), max_size=300), st.integers(1, 50), st.integers(1, 50))
def test_pace(gaps: list[float], rate: int, burst: int) -> None:
    """Whoever waits as told gets ``burst`` and no more than ``rate`` a second beyond it."""
    pace, now = Pace(rate, burst), 100.0
    served: list[float] = []
    for gap in gaps:
        now = max(now + gap, served[-1] if served else 0)
        served.append(now + pace.delay("x", now))
    for at, first in enumerate(served):
        for count, last in enumerate(served[at:], 1):
            assert count <= burst + rate * (last - first) + 1 + 1e-6
    assert pace.delay("y", now) == 0
    assert all(pace.delay("z", 1000) < 1e-6 for _ in range(burst))
    assert pace.delay("z", 1000) > 0.5 / rate


def test_pace_forgets() -> None:
    pace = Pace(1, 1)
    assert (pace.delay("x", 10), pace.delay("x", 10)) == (0, 1)
    pace.forget("x")
    pace.forget("x")
    assert pace.delay("x", 10) == 0
