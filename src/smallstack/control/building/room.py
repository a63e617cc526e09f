"""Where builds work: one directory each, locked as long as its build lives.

A build that was killed leaves its directory; the next one finds it unlocked and removes it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from smallstack.control.building.confine import BuildError
from smallstack.telemetry.errors import describe

_PREFIX: Final = "build-"


@contextmanager
def work_directory(place: Path) -> Iterator[Path]:
    """A new directory below ``place``, removed at the end; removes what killed builds left.

    Raises BuildError.
    """
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in place.glob(f"{_PREFIX}*"):
                _remove_unlocked(left)
            work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            held = _locked(work)
    except OSError as error:
        raise BuildError(step="the work directory", detail=describe(error)) from error
    assert held is not None
    try:
        yield work
    finally:
        shutil.rmtree(work)
        os.close(held)


def _locked(work: Path) -> int | None:
    """A descriptor that holds the directory's lock; None when another process has it."""
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _remove_unlocked(work: Path) -> None:
    with suppress(FileNotFoundError):
        fd = _locked(work)
        if fd is not None:
            try:
                shutil.rmtree(work)
            finally:
                os.close(fd)


def in_root(root: Path, path: str) -> Path:
    """Where ``path`` of an image lies on this machine, symlinks followed as the image's own.

    What is not there is where it would be. Raises BuildError for a loop of links.
    """
    parts = [part for part in path.split("/") if part]
    found: list[str] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            del found[-1:]
        elif part != ".":
            here = root.joinpath(*found, part)
            if here.is_symlink():
                links += 1
                if links > 40:
                    raise BuildError(step=path, detail="leads through a loop of links")
                target = os.readlink(here)  # noqa: PTH115 - its text
                if target.startswith("/"):
                    found.clear()
                parts = [part for part in target.split("/") if part] + parts
            else:
                found.append(part)
    return root.joinpath(*found)
