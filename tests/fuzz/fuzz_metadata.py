"""A guest's bytes on the metadata port: read as requests, routed, answered.

The first byte says in what pieces the rest arrives; that must not matter.
"""

from dataclasses import dataclass
from pathlib import Path

from smallstack.network.metadata.http import (
    HEAD_LIMIT,
    HttpError,
    Reader,
    Request,
    response_head,
)
from smallstack.network.metadata.routes import File, Missing, Text, answer
from smallstack.proto.vm import VmInfo


@dataclass
class View:
    """A VM with user data."""

    info: VmInfo
    user_data: Path | None = Path("/user-data")


VM = View(VmInfo())


def one_input(data: bytes) -> None:
    """Nothing but HttpError for bad bytes, and the same requests however they are cut."""
    step, rest = (data[0] if data else 0) + 1, data[1:]
    requests, refusal = read(rest, step)
    whole, whole_refusal = read(rest, max(len(rest), 1))
    # A refusal for length comes as soon as the limit is reached, wherever that is.
    if len(rest) < HEAD_LIMIT:
        assert (requests, refusal) == (whole, whole_refusal)
    for request in requests:
        found = answer(request.path, VM, 1, lambda info: b"{}\n")
        assert isinstance(found, Text | File | Missing)
        body = found.body if isinstance(found, Text) else b""
        head = response_head(200, len(body), "text/plain", keep_alive=request.keep_alive, now=1)
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"\r\n") == 6


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
