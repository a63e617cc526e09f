"""The text around calls: exact bytes, every split of them, and bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallstack.srpc import framing
from smallstack.srpc.framing import FramingError, MethodLineError

HEADS = [
    b"CONNECT /_go_TLS_SRPC_/ HTTP/1.0\n\n",
    b"CONNECT /_goSRPC_/ HTTP/1.1\r\nHost: hv1:6976\r\n\r\n",
    b"CONNECT /_SRPC_/TLS/JSON?doNotUseMethodPowers=true HTTP/1.0\n\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: curl\n\r\n",
]


def test_what_a_client_sends_first() -> None:
    assert framing.connect_request(framing.TLS_GOB) == HEADS[0]
    assert framing.connect_request(framing.TLS_JSON, use_method_powers=False) == HEADS[2]


def test_what_a_server_answers() -> None:
    assert framing.CONNECTED == b"HTTP/1.0 200 Connected to Go SRPC\n\n"
    head = framing.parse_reply_head(framing.CONNECTED + b"more")
    assert head == framing.ReplyHead(200, framing.CONNECTED_STATUS, 35)
    assert framing.refusal(405) == (
        b"HTTP/1.0 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("head", HEADS)
def test_heads_in_every_split(head: bytes) -> None:
    whole = framing.parse_request_head(head + b"behind")
    assert whole is not None
    assert whole.size == len(head)
    for cut in range(len(head)):
        assert framing.parse_request_head(head[:cut]) is None
    assert framing.parse_request_head(bytearray(head)) == whole


def test_parts_of_a_head() -> None:
    head = framing.parse_request_head(HEADS[2])
    assert head is not None
    assert (head.method, head.path) == ("CONNECT", "/_SRPC_/TLS/JSON")
    assert framing.wants_no_powers(head.query)
    assert framing.wants_no_powers("a=b&doNotUseMethodPowers=true")
    assert not framing.wants_no_powers("doNotUseMethodPowers=false")


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/_goSRPC_/", framing.PLAIN_GOB),
        ("/_goSRPC_/anything", framing.PLAIN_GOB),
        ("/_go_TLS_SRPC_/", framing.TLS_GOB),
        ("/_SRPC_/unsecured/JSON", framing.PLAIN_JSON),
        ("/_SRPC_/TLS/JSON", framing.TLS_JSON),
        ("/_SRPC_/TLS/JSON/", None),
        ("/_goSRPC_", None),
        ("/", None),
        ("", None),
        ("hv1:6976", None),
    ],
)
def test_endpoints(path: str, endpoint: framing.Endpoint | None) -> None:
    assert framing.find_endpoint(path) == endpoint


@pytest.mark.parametrize(
    "data",
    [
        b"\n\n",
        b"CONNECT\n\n",
        b"CONNECT / FTP/1.0\n\n",
        b"CONNECT  / HTTP/1.0\n\n",
        b"C0NNECT / HTTP/1.0\n\n",
        b"CONNECT /\xff HTTP/1.0\n\n",
        b"x" * framing.MAX_HEAD,
        b"GET / HTTP/1.0\nX: " + b"x" * framing.MAX_HEAD + b"\n\n",
    ],
)
def test_heads_that_never_will_be(data: bytes) -> None:
    with pytest.raises(FramingError):
        framing.parse_request_head(data)


@pytest.mark.parametrize(
    "data",
    [b"\x15\x03\x01\x00\x02\x02\x32", b"SSH-2.0", b"HTTX", b"HTTP/1.0\n\n", b"HTTP/1.0 2x0 y\n\n"],
)
def test_answers_that_are_not_http(data: bytes) -> None:
    with pytest.raises(FramingError):
        framing.parse_reply_head(data)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (b"Hypervisor.StartVm", ("Hypervisor", "StartVm")),
        (b"Hypervisor.StartVm\r", ("Hypervisor", "StartVm")),
        (b"  Hypervisor.StartVm ", ("Hypervisor", "StartVm")),
        (b".LocalUpgradeToUnix", ("", "LocalUpgradeToUnix")),
        (b"", None),
        (b"\r", None),
        (b" ", None),
    ],
)
def test_method_lines(line: bytes, names: tuple[str, str] | None) -> None:
    assert framing.split_method(line) == names


@pytest.mark.parametrize("line", [b"abc", b"a.b.c", b"..", b"\xff"])
def test_malformed_method_lines(line: bytes) -> None:
    with pytest.raises(MethodLineError) as caught:
        framing.split_method(line)
    assert str(caught.value) == f"malformed Service.Method: {line.decode(errors='replace')}"


def test_error_lines_are_one_line() -> None:
    assert framing.error_line("a\nb\r\n c") == b"a b c\n"
    assert framing.error_line("") == b"unknown error\n"
    assert framing.error_line("\udcff") == b"?\n"


@given(st.binary(max_size=200))
def test_requests_end_in_a_head_or_an_error(data: bytes) -> None:
    try:
        head = framing.parse_request_head(data)
    except FramingError:
        return
    if head is not None:
        assert head.size <= len(data)
        assert data[: head.size].endswith((b"\n\n", b"\n\r\n"))


@given(
    st.sampled_from(["GET", "CONNECT", "HEAD"]),
    st.text(st.characters(codec="ascii", exclude_characters=" \r\n", min_codepoint=33), min_size=1),
    st.lists(st.sampled_from(["Host: a", "X: y"]), max_size=3),
    st.sampled_from(["\n", "\r\n"]),
    st.binary(max_size=20),
)
def test_what_is_built_is_parsed(
    method: str, target: str, headers: list[str], end: str, behind: bytes
) -> None:
    text = end.join([f"{method} {target} HTTP/1.1", *headers, "", ""]).encode()
    head = framing.parse_request_head(text + behind)
    assert head is not None
    assert (head.method, head.size) == (method, len(text))
    assert head.path + (f"?{head.query}" if "?" in target else "") == target


@given(st.binary(max_size=300))
def test_any_method_line_is_a_name_a_ping_or_malformed(line: bytes) -> None:
    try:
        names = framing.split_method(line)
    except MethodLineError:
        return
    assert names is None or all("." not in name for name in names)
