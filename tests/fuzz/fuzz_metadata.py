"""A guest's bytes on the metadata port: read as requests, routed, answered.

The first byte says in what pieces the rest arrives; that must not matter.
"""

from dataclasses import dataclass
from pathlib import Path

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
from smallstack.network.metadata.routes import (
    CREDENTIALS,
    IDENTITY,
    TOKEN_PATH,
    File,
    Missing,
    Refused,
    Rules,
    Signed,
    Text,
    Token,
    answer,
)
from smallstack.network.metadata.tokens import Tokens
from smallstack.proto.vm import VmInfo


@dataclass
class View:
    """A VM with user data."""

    info: VmInfo
    user_data: Path | None = Path("/user-data")
    credentials: Path | None = Path("/credentials")


VM = View(VmInfo())
TOKENS = Tokens(b"k" * 32)
GOOD = TOKENS.issue(VM.info, 60, 1).decode()
OPEN, CLOSED = Rules(tokens=TOKENS), Rules(tokens=TOKENS, tokens_for="credentials")


def one_input(data: bytes) -> None:
    """Nothing but HttpError for bad bytes, and the same requests however they are cut."""
    step, rest = (data[0] if data else 0) + 1, data[1:]
    requests, refusal = read(rest, step)
    whole, whole_refusal = read(rest, max(len(rest), 1))
    # A refusal for length comes as soon as the limit is reached, wherever that is.
    if len(rest) < HEAD_LIMIT:
        assert (requests, refusal) == (whole, whole_refusal)
    for request in requests:
        check(request)


def check(request: Request) -> None:
    """Every answer is one; keys are had by a good token only, and files are those of the VM."""
    found = answer(request, VM, 1, OPEN)
    held = answer(request, VM, 1, CLOSED)
    assert isinstance(found, Text | Token | Signed | File | Missing | Refused)
    assert (held == Refused(401)) or type(held) is type(found)
    if isinstance(held, File) and held.path.parent == VM.credentials:
        assert request.path.removeprefix(f"{IDENTITY}/") in CREDENTIALS
        assert request.headers.get(TOKEN) == GOOD
    if isinstance(found, Token):
        assert (request.method, request.path) == ("PUT", TOKEN_PATH)
        assert FORWARDED_FOR not in request.headers
        assert TOKENS.is_good(found.body.decode(), VM.info, 1)
    body = found.body if isinstance(found, Text | Token | Signed) else b""
    headers = {TOKEN_SECONDS: str(found.seconds)} if isinstance(found, Token) else {}
    head = response_head(
        200, len(body), "text/plain", keep_alive=request.keep_alive, now=1, headers=headers
    )
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n") == 6 + len(headers)


def read(data: bytes, step: int) -> tuple[list[Request], str]:
    """The requests in ``data`` and the reason for which the rest was refused."""
    reader = Reader()
    found: list[Request] = []
    try:
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            while (request := reader.next_request()) is not None:
                found.append(request)
    except HttpError as error:
        return found, error.reason
    return found, ""
