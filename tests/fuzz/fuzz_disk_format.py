"""A disk image from anywhere: a size or one line, and nothing that leads to another file.

The first byte says how the rest is compressed and in what pieces it comes.
"""

import tempfile
from pathlib import Path

from smallstack.volumes.errors import DiskImageError
from smallstack.volumes.foreign.formats import (
    HEAD,
    DiskFormat,
    FormatError,
    check_head,
    check_whole,
    recognise,
)
from smallstack.volumes.foreign.intake import Intake

LIMIT = 1 << 22


def one_input(data: bytes) -> None:
    step, rest = (data[0] if data else 0) + 1, data[1:]
    look(rest)
    with tempfile.TemporaryDirectory() as directory:
        take(Path(directory) / "file", rest, step)


def look(data: bytes) -> None:
    """What a VMDK or VDI says of itself."""
    try:
        format_ = recognise(data[:HEAD])
        check_head(format_, data[:HEAD])
        if format_ in (DiskFormat.VMDK, DiskFormat.VDI):
            assert check_whole(format_, lambda at, n: data[at : at + n], len(data)) > 0
    except FormatError as error:
        assert "\n" not in str(error)


def take(path: Path, data: bytes, step: int) -> None:
    """The same as it comes; what is written stays within what is allowed."""
    intake = Intake(path, "x", wanted=None, limit=LIMIT)
    try:
        for at in range(0, len(data), step):
            written = intake.feed(data[at : at + step])
            while not written:
                assert intake.size <= max(intake.allowed, 0)
                intake.allowed = intake.waiting
                written = intake.pump()
        intake.allowed = LIMIT
        size = intake.finish()
        assert size <= LIMIT
        assert intake.format is not DiskFormat.RAW or size == path.stat().st_size
    except DiskImageError as error:
        assert "\n" not in str(error)
    finally:
        intake.close()
