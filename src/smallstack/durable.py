"""Files that a crash leaves whole: the old content or the new, never a part of either.

What is written goes to a temporary name (the file's and ``~``), is synced and renamed. Everything
here blocks; callers on a loop use threads.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def replace_file(
    path: Path, data: bytes, mode: int = 0o644, *, sync: bool = True, exclusive: bool = False
) -> None:
    """Write a file so that a crash at any point leaves the old content or the new.

    ``mode`` holds from the first byte on. Without ``sync`` a crash of this process is meant, not
    of the machine. Raises OSError, FileExistsError among them when ``exclusive`` and the name is
    taken; the file is then as it was.
    """
    temporary = path.with_name(path.name + "~")
    temporary.unlink(missing_ok=True)  # of a crash; it may have another mode
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if exclusive:
            path.hardlink_to(temporary)
            temporary.unlink()
        else:
            temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def private_directory(path: Path) -> None:
    """Make a directory that is its owner's alone; one that is there is closed to the world.

    Directories above it are made as usual. Raises OSError.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        with suppress(PermissionError):  # another user's, who has shared it on purpose
            path.chmod(mode & ~0o007)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def boot_id() -> str:
    """What the kernel calls this boot: another one after every restart of the host."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # pragma: no cover - every Linux has it
        return ""
