"""gob streams from a peer: a value, "more", or GobError; values agree with the slow reference."""

from typing import Any

from smallstack.proto.hypervisor.every import (
    CreateVmRequest,
    CreateVmResponse,
    GetVmInfoRequest,
    GetVmInfosRequest,
    Update,
)
from smallstack.proto.imageserver import (
    AddImageRequest,
    FindLatestImageRequest,
    GetImageInodesResponse,
    GetImageResponse,
)
from smallstack.proto.kinds import Hash, Uint64
from smallstack.proto.objectserver import (
    AddObjectRequest,
    AddObjectResponse,
    CheckObjectsRequest,
)
from smallstack.srpc.gob import NEED_MORE, Decoder, Encoder, GobError, Limits
from tests.proto.reference_gob import ReferenceDecoder

TYPES: list[Any] = [
    CreateVmRequest,
    CreateVmResponse,
    GetVmInfoRequest,
    GetVmInfosRequest,
    Update,
    AddImageRequest,
    FindLatestImageRequest,
    GetImageInodesResponse,
    GetImageResponse,
    AddObjectRequest,
    AddObjectResponse,
    CheckObjectsRequest,
    Hash,
    str,
    list[Uint64],
]
"""The first byte of an input chooses one of these; seeds depend on the order."""

LIMITS = Limits(message=1 << 20, value=1 << 20, elements=1 << 16, values=1 << 17, inodes=1 << 12)


def one_input(data: bytes) -> None:
    """Decode a stream in two ways of feeding; what comes out survives a round trip."""
    if len(data) < 2:
        return
    type_ = TYPES[data[0] % len(TYPES)]
    stream = data[2:]
    whole = decode(stream, type_, len(stream) + 1)
    assert decode(stream, type_, 1 + data[1]) == whole
    reference = ReferenceDecoder(stream)
    for value in whole:
        assert reference.decode(type_) == value
        again = decode(Encoder().encode(value, type_), type_, 1 << 20)
        assert again == [value]


def decode(stream: bytes, type_: Any, step: int) -> list[Any]:
    """The values in a stream that is fed in steps of some bytes, up to the first error."""
    decoder = Decoder(LIMITS)
    found: list[Any] = []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        try:
            while (value := decoder.decode(type_)) is not NEED_MORE:
                found.append(value)
        except GobError as error:
            assert "\n" not in str(error)
            return found
    return found
