"""JSON from a peer: a value, "more", or JsonError; values survive a round trip."""

from typing import Any

from smallstack.proto.hypervisor.every import CopyVmRequest, CreateVmResponse, Update
from smallstack.proto.imageserver import GetImageInodesResponse, GetImageResponse
from smallstack.proto.objectserver import CheckObjectsRequest
from smallstack.srpc.coder import NEED_MORE, Limits
from smallstack.srpc.errors import JsonError, LocalProtocolError
from smallstack.srpc.json_coder import Decoder, Encoder

TYPES: list[Any] = [
    CopyVmRequest,
    CreateVmResponse,
    Update,
    GetImageInodesResponse,
    GetImageResponse,
    CheckObjectsRequest,
]
"""The first byte of an input chooses one of these; seeds depend on the order."""

LIMITS = Limits(message=1 << 20, depth=16)


def one_input(data: bytes) -> None:
    """Decode a stream in two ways of feeding; what comes out is written and read again."""
    if len(data) < 2:
        return
    type_ = TYPES[data[0] % len(TYPES)]
    stream = data[2:]
    whole = decode(stream, type_, len(stream) + 1)
    assert decode(stream, type_, 1 + data[1]) == whole
    for value in whole:
        try:
            text = Encoder().encode(value)
        except LocalProtocolError:
            continue  # a year beyond 9999 in another zone, for one
        assert decode(text, type_, 1 << 20) == [value]


def decode(stream: bytes, type_: Any, step: int) -> list[Any]:
    """The values in a stream that is fed in steps of some bytes, up to the first error."""
    decoder = Decoder(LIMITS)
    found: list[Any] = []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        try:
            while (value := decoder.decode(type_)) is not NEED_MORE:
                found.append(value)
        except JsonError as error:
            assert "\n" not in str(error)
            return found
    return found
