"""The files of a catalogue: one value in gob, then the SHA-512 of that gob; whole or not there."""

import hashlib
import os
from pathlib import Path
from typing import Final, TypeVar

from smallstack.durable import replace_file
from smallstack.images.errors import RefusedError
from smallstack.srpc.coder import IMAGE, NEED_MORE
from smallstack.srpc.gob import Decoder, Encoder

T = TypeVar("T")
DIGEST_SIZE: Final = 64


def decode(data: bytes, kind: type[T]) -> T:
    """The value in a file's bytes; raises RefusedError, GobError."""
    body = memoryview(data)[:-DIGEST_SIZE]
    if not body or hashlib.sha512(body).digest() != data[-DIGEST_SIZE:]:
        raise RefusedError(text="its checksum is wrong: the file is damaged")
    decoder = Decoder(IMAGE)
    decoder.feed(body)
    value = decoder.decode(kind)
    if value is NEED_MORE:
        raise RefusedError(text="it ends too early: the file is damaged")
    return value


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
