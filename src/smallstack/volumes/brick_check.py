"""Looks at every brick of a directory, as far as a brick can be judged by itself.

Nothing but another unpacking of its image says what every byte of a brick should be. What can be
told: that its partition lies on the disk, that the file system in it is whole as far as its super
blocks and their sums go, and whether it was made durable. Of a disk that others made only the last.
Only reads; blocks.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from smallstack.durable import boot_id
from smallstack.telemetry.errors import describe
from smallstack.volumes.brick import NOTE, PENDING, TEMPORARY, is_imported
from smallstack.volumes.edit import Edit
from smallstack.volumes.partition import root_of


@dataclass(slots=True)
class CheckedBricks:
    """Bricks and their bytes on disk; how many are not durable yet; files of bricks that were being
    made. Wrong is also what was not durable when the host went down."""

    bricks: int = 0
    size: int = 0
    pending: int = 0
    leftovers: int = 0
    wrong: list[tuple[Path, str]] = field(default_factory=list)


_TORN: Final = (
    "it was not yet safe on disk when the host went down: the agent's next start removes it"
)


def check_bricks(directory: Path) -> CheckedBricks:
    """Check the bricks in ``directory``; one that is not there has none. Raises OSError."""
    found = CheckedBricks()
    names = sorted(os.listdir(directory)) if directory.is_dir() else []  # noqa: PTH208 - names
    boot = boot_id()
    for name in names:
        path = directory / name
        try:
            if TEMPORARY in name:
                found.leftovers += 1
            elif name.endswith(PENDING):
                brick = path.with_name(name.removesuffix(PENDING))
                if path.read_text() == boot:
                    found.pending += 1
                elif brick.exists():
                    found.wrong.append((brick, _TORN))
                else:
                    found.leftovers += 1
            elif not name.endswith((NOTE, "~")):
                _check(path, found)
        except FileNotFoundError:
            continue  # it went meanwhile
    return found


def _check(path: Path, found: CheckedBricks) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        found.bricks += 1
        found.size += facts.st_blocks * 512
        if is_imported(path):
            return
        root = root_of(fd, facts.st_size)
        if root.size <= 0:
            raise OSError(f"{facts.st_size} bytes are no disk")
        Edit(fd, root.offset, root.size, 0).identity(b"", bytes(16))  # reads all; nothing is kept
    except OSError as error:
        found.wrong.append((path, f"its file system is damaged: {describe(error)}"))
    finally:
        os.close(fd)
