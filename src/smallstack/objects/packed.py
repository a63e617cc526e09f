"""Objects compressed on the wire, between peers of this project only: frames, without any I/O.

What follows a good reply of ``ObjectServer.GetCompressedObjects`` is the bytes that would follow
that of ``GetObjects``, cut into pieces of at most `PIECE` bytes, each as::

    u32 big-endian: bytes of the frame, at most `FRAME`; the frame: one of zstd (RFC 8878) that
    tells the size of its content

Both sides hold one piece and one frame. The sizes of all objects are known beforehand, so there is
no end mark, and a frame that would give more than is still to come is refused before it is opened.
"""

from typing import Final

from smallstack.telemetry.errors import SmallStackError

PIECE: Final = 1 << 20
FRAME: Final = PIECE + (PIECE >> 7) + 512
"""More than zstd needs for a piece that does not get smaller."""
HEADER: Final = 4
LEVEL: Final = 1
"""About as fast as SHA-512 goes; higher ones save little more of programs and libraries."""


class PackedError(SmallStackError):
    """a compressed piece of objects is not valid: {detail}"""


def pack(data: bytes) -> bytes:
    """A piece of at most `PIECE` bytes as it goes on the wire."""
    from zstandard import ZstdCompressor

    frame = ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)
    return len(frame).to_bytes(HEADER, "big") + frame


def frame_size(header: bytes) -> int:
    """Bytes of the frame behind this header; raises PackedError when no piece is that large."""
    size = int.from_bytes(header, "big")
    if not 0 < size <= FRAME:
        raise PackedError(detail=f"a frame of {size} bytes, more than {FRAME} are not taken")
    return size


def unpack(frame: bytes, most: int) -> bytes:
    """The content of a frame, 1 to ``most`` bytes; raises PackedError."""
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    most = min(most, PIECE)
    try:
        size = get_frame_parameters(frame).content_size
        if not 0 < size <= most:
            raise PackedError(detail=f"it says that it holds {size} bytes, {most} are to come")
        data = ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except ZstdError as error:
        raise PackedError(detail=str(error)) from error
    if len(data) != size:
        raise PackedError(detail=f"it holds {len(data)} bytes and says {size}")
    return data
