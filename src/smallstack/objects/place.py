"""Where the bytes of one object are."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

CHUNK: Final = 1 << 20


class Place(NamedTuple):
    """Where the bytes of an object are: in which file, where they begin, how many there are."""

    path: Path
    offset: int
    size: int
    packed: bool
    """Whether others are in the same file."""

    def read(self) -> Iterator[bytes]:
        """The bytes, a megabyte at a time; raises OSError, also where the file is too short."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.size
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
                left -= len(data)
                yield data
