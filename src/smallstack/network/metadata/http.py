"""As much of HTTP/1.1 as a metadata client needs; no I/O.

Requests are read head by head (RFC 9112); a body is never wanted, so a request that announces one
is answered and then the connection ends. Everything is bounded: bytes of a head, number of its
lines. `Reader` returns a request, `None` for "need more", or raises `HttpError`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from smallstack.telemetry.errors import SmallStackError

HEAD_LIMIT = 8192
LINE_LIMIT = 100
TOKEN = "x-aws-ec2-metadata-token"
TOKEN_SECONDS = "x-aws-ec2-metadata-token-ttl-seconds"
FORWARDED_FOR = "x-forwarded-for"
KEPT = (TOKEN, TOKEN_SECONDS, FORWARDED_FOR)
"""The headers that whoever answers looks at."""
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/(\d)\.(\d)")
_END = re.compile(rb"\r?\n\r?\n")


class HttpError(SmallStackError):
    """bad HTTP request: {reason}"""

    status: int


@dataclass(frozen=True)
class Request:
    """One request's head. ``path`` is decoded and has no query; ``keep_alive`` says whether
    another request may follow; ``headers`` are those of KEPT, by lower-case name."""

    method: str
    path: str
    keep_alive: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


class Reader:
    """Bytes in, requests out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._buffer += data

    @property
    def has_begun(self) -> bool:
        """Whether part of a request is here."""
        return bool(self._buffer)

    def next_request(self) -> Request | None:
        """The next request, or None until more bytes are there. Raises HttpError."""
        while self._buffer[:2] == b"\r\n":  # RFC 9112 §2.2: an empty line in front is ignored
            del self._buffer[:2]
        end = _END.search(self._buffer, 0, HEAD_LIMIT)
        if end is None:
            if len(self._buffer) >= HEAD_LIMIT:
                raise HttpError(reason="the head is too long", status=431)
            return None
        head = bytes(self._buffer[: end.start()])
        del self._buffer[: end.end()]
        return _parse(head)


def _parse(head: bytes) -> Request:
    first, *lines = head.split(b"\n")
    if len(lines) > LINE_LIMIT:
        raise HttpError(reason="too many header lines", status=431)
    parts = first.rstrip(b"\r").split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]):
        raise HttpError(reason="not a request line", status=400)
    method, target, version = parts
    matched = _VERSION.fullmatch(version)
    if matched is None:
        raise HttpError(reason="not a request line", status=400)
    if matched[1] != b"1":
        raise HttpError(reason="unknown version of HTTP", status=505)
    headers = _headers(lines)
    wanted = {word.strip().lower() for word in headers.get(b"connection", b"").split(b",")}
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    persistent = matched[2] != b"0" or b"keep-alive" in wanted
    return Request(
        method=method.decode("ascii"),
        path=_path(target),
        keep_alive=persistent and b"close" not in wanted and not has_body,
        headers={
            name: headers[name.encode()].decode("ascii", "replace")
            for name in KEPT
            if name.encode() in headers
        },
    )


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """By lower-case name; of several only the last, which is enough for the ones looked at."""
    found: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.rstrip(b"\r").partition(b":")
        if not colon or not _NAME.fullmatch(name) or b"\0" in value or b"\r" in value:
            raise HttpError(reason="not a header line", status=400)
        found[name.lower()] = value.strip(b" \t")
    return found


def _path(target: bytes) -> str:
    """The decoded path of a target in origin form or absolute form (RFC 9112 §3.2)."""
    if any(byte <= 0x20 or byte == 0x7F for byte in target):
        raise HttpError(reason="not a request target", status=400)
    if not target.startswith(b"/") and target != b"*":
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in {b"http", b"https"}:
            raise HttpError(reason="not a request target", status=400)
        slash = rest.find(b"/")
        target = rest[slash:] if slash >= 0 else b"/"
    path = unquote_to_bytes(target.partition(b"?")[0].partition(b"#")[0])
    return path.decode("utf-8", "replace")


def response_head(
    status: int,
    length: int,
    content_type: str,
    *,
    keep_alive: bool,
    now: float,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Status line and headers of a reply whose body has ``length`` bytes; ``now`` is Unix time.

    ``headers`` are further ones.
    """
    usual = {
        "Date": formatdate(now, usegmt=True),
        "Content-Type": content_type,
        "Content-Length": str(length),
        "Connection": "keep-alive" if keep_alive else "close",
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in {**usual, **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
