"""The files of a catalogue: one value in gob, then the SHA-512 of that gob; whole or not there."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from smallstack.durable import replace_file
from smallstack.images.errors import RefusedError
from smallstack.srpc.coder import IMAGE, NEED_MORE
from smallstack.srpc.gob import Decoder, Encoder

T = TypeVar("T")
DIGEST_SIZE: Final = 64
PIECE: Final = 1 << 20
"""Bytes of a file that are read at a time."""


def read(path: Path, kind: type[T]) -> tuple[T, bytes]:
    """The value in a file, and its digest.

    The file is read a piece at a time: of a large tree only its tables are ever there whole.
    Raises RefusedError, GobError, OSError.
    """
    with path.open("rb") as file:
        return read_from(file, os.fstat(file.fileno()).st_size, kind)


def read_from(file: BinaryIO, size: int, kind: type[T]) -> tuple[T, bytes]:
    """`read`, from an open file of ``size`` bytes."""
    hasher, decoder, left = hashlib.sha512(), Decoder(IMAGE), size - DIGEST_SIZE
    while left > 0 and (piece := file.read(min(PIECE, left))):
        hasher.update(piece)
        decoder.feed(piece)
        left -= len(piece)
    digest = file.read(DIGEST_SIZE)
    if left or hasher.digest() != digest:
        raise RefusedError(text="its checksum is wrong: the file is damaged")
    value = decoder.decode(kind)
    if value is NEED_MORE:
        raise RefusedError(text="it ends too early: the file is damaged")
    return value, digest


def write(path: Path, value: object, *, exclusive: bool) -> bytes:
    """Write a value and its digest so that it is there whole or not at all; the digest.

    Raises OSError, FileExistsError among them when ``exclusive`` and the name is taken.
    """
    data = Encoder().encode(value)
    checksum = hashlib.sha512(data).digest()
    replace_file(path, data + checksum, exclusive=exclusive)
    return checksum


def truncate(path: Path) -> None:
    """Make a file empty, on disk when this returns; raises OSError."""
    with path.open("r+b") as file:
        file.truncate(0)
        os.fsync(file.fileno())
