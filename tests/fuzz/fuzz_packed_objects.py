"""Frames of compressed objects: refused, or opened to no more than is to come."""

from smallstack.objects.packed import HEADER, PIECE, PackedError, frame_size, pack, unpack


def one_input(data: bytes) -> None:
    header, frame = data[:HEADER], data[HEADER:]
    try:
        frame_size(header)
    except PackedError:
        pass
    most = int.from_bytes(header[:2], "big") * 16 + 1
    try:
        content = unpack(frame, most)
    except PackedError:
        return
    assert 0 < len(content) <= min(most, PIECE)
    assert unpack(pack(content)[HEADER:], len(content)) == content
