"""The text around calls, without I/O: CONNECT and its answer, method lines, the endpoints.

A connection opens like an HTTP tunnel::

    client  CONNECT /_go_TLS_SRPC_/ HTTP/1.0 LF LF
    server  HTTP/1.0 200 Connected to Go SRPC LF LF        (then TLS, on the endpoints that ask it)

and goes on with calls, one at a time::

    client  Hypervisor.StartVm LF                          (an empty line is a ping)
    server  LF                                             (or the reason of a refusal, LF)

Functions that parse return None while the input is not complete and raise `FramingError` when it
never will be. Lengths are bounded: `MAX_HEAD` for a head, `MAX_METHOD_LINE` for a method line.
"""

from typing import Final, NamedTuple

from smallstack.srpc.errors import RemoteProtocolError

MAX_HEAD: Final = 8192
"""Bytes of an HTTP head, request or reply."""
MAX_METHOD_LINE: Final = 1024
"""Bytes of a method line. The longest method name there is has 45."""
MAX_REPLY_LINE: Final = 64 * 1024
"""Bytes of an error line as a client takes it."""

CONNECTED: Final = b"HTTP/1.0 200 Connected to Go SRPC\n\n"
CONNECTED_STATUS: Final = "200 Connected to Go SRPC"
NO_POWERS: Final = "doNotUseMethodPowers=true"

UPGRADE: Final = b".LocalUpgradeToUnix"
"""The one method without a service: both ends on one machine move to a Unix socket."""

ACCESS_DENIED: Final = "access to method denied"


class FramingError(RemoteProtocolError):
    """the peer does not speak this protocol: {what}"""


class Endpoint(NamedTuple):
    """One way of speaking: the path to CONNECT to, whether TLS follows, and the coder."""

    path: str
    tls: bool
    json: bool


PLAIN_GOB: Final = Endpoint("/_goSRPC_/", tls=False, json=False)
PLAIN_JSON: Final = Endpoint("/_SRPC_/unsecured/JSON", tls=False, json=True)
TLS_GOB: Final = Endpoint("/_go_TLS_SRPC_/", tls=True, json=False)
TLS_JSON: Final = Endpoint("/_SRPC_/TLS/JSON", tls=True, json=True)

SECURE: Final = (TLS_GOB, TLS_JSON)
PLAIN: Final = (PLAIN_GOB, PLAIN_JSON)

_REASONS: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    503: "Service Unavailable",
}


class RequestHead(NamedTuple):
    """A parsed request head; ``size`` bytes of the input belong to it."""

    method: str
    path: str
    query: str
    size: int


class ReplyHead(NamedTuple):
    """A parsed reply head; ``status`` is the code with its text, ``200 Connected to Go SRPC``."""

    code: int
    status: str
    size: int


def parse_request_head(data: bytes | bytearray) -> RequestHead | None:
    """The head at the start of ``data``; LF and CRLF end lines alike, header lines are skipped.

    None while more input is needed; raises FramingError for what can never be a head.
    """
    size = _head_size(data)
    if size is None:
        return None
    parts = _first_line(data, size).split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/") or not parts[0].isalpha():
        raise FramingError(what="the request line is not METHOD PATH HTTP/1.x")
    path, _, query = parts[1].partition("?")
    return RequestHead(parts[0], path, query, size)


def parse_reply_head(data: bytes | bytearray) -> ReplyHead | None:
    """The head of a server's answer at the start of ``data``, as `parse_request_head`.

    Raises FramingError at the first byte that shows that the answer is not HTTP.
    """
    start = bytes(data[:5])
    if not b"HTTP/".startswith(start):
        raise FramingError(what="the answer to CONNECT is not HTTP")
    size = _head_size(data)
    if size is None:
        return None
    version, _, status = _first_line(data, size).partition(" ")
    code = status[:3]
    if len(code) != 3 or not (code.isascii() and code.isdigit()) or len(version) < 8:
        raise FramingError(what="the answer to CONNECT has no status")
    return ReplyHead(int(code), status.strip(), size)


def connect_request(endpoint: Endpoint, use_method_powers: bool = True) -> bytes:
    """What a client sends first."""
    query = "" if use_method_powers else f"?{NO_POWERS}"
    return f"CONNECT {endpoint.path}{query} HTTP/1.0\n\n".encode()


def refusal(code: int) -> bytes:
    """A whole HTTP reply with an empty body that refuses a connection."""
    return (
        f"HTTP/1.0 {code} {_REASONS[code]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode()


def reason(code: int) -> str:
    """Code and words, as a refusal has them."""
    return f"{code} {_REASONS[code]}"


def find_endpoint(path: str) -> Endpoint | None:
    """The endpoint a path leads to. What ends in a slash takes all below it, as in Go's mux."""
    for endpoint in (*SECURE, *PLAIN):
        if path == endpoint.path or (
            endpoint.path.endswith("/") and path.startswith(endpoint.path)
        ):
            return endpoint
    return None


def wants_no_powers(query: str) -> bool:
    """Whether the client asked to be treated as if it had no method powers."""
    return NO_POWERS in query.split("&")


def split_method(line: bytes) -> tuple[str, str] | None:
    """Service and method of a method line (without its LF), None for a ping.

    Raises MethodLineError, whose text is the error line to answer with.
    """
    text = line.decode(errors="replace").strip()
    if not text:
        return None
    service, dot, method = text.partition(".")
    if not dot or "." in method:
        raise MethodLineError(what=f"malformed Service.Method: {text}")
    return service, method


class MethodLineError(RemoteProtocolError):
    """{what}"""


def error_line(text: str) -> bytes:
    """``text`` as an error line: one line, never empty, LF at its end."""
    return (" ".join(text.split()) or "unknown error").encode(errors="replace") + b"\n"


def _head_size(data: bytes | bytearray) -> int | None:
    """Bytes up to and with the empty line that ends a head."""
    bare, full = data.find(b"\n\n"), data.find(b"\n\r\n")
    ends = [at + length for at, length in ((bare, 2), (full, 3)) if at >= 0]
    size = min(ends, default=None)
    if size is None and len(data) < MAX_HEAD:
        return None
    if size is None or size > MAX_HEAD:
        raise FramingError(what=f"the head has more than {MAX_HEAD} bytes")
    return size


def _first_line(data: bytes | bytearray, size: int) -> str:
    line = bytes(data[:size]).split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        return line.decode("ascii")
    except UnicodeDecodeError:
        raise FramingError(what="the first line is not ASCII") from None
