"""Files that a crash leaves whole: the old content or the new, never a part of either.

What is written goes to a temporary name (the file's and ``~``), is synced and renamed. Everything
here blocks; callers on a loop use threads.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def replace_file(
    path: Path, data: bytes, mode: int = 0o644, *, sync: bool = True, exclusive: bool = False
) -> None:
    """Write a file of ``data``, as `replace_by` does under the name ``path~``.

    Nobody else may be writing it.
    """

    def fill(fd: int) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    temporary = path.with_name(path.name + "~")
    temporary.unlink(missing_ok=True)  # of a crash; it may have another mode
    replace_by(path, fill, mode, temporary, sync=sync, exclusive=exclusive)


def replace_by(
    path: Path,
    fill: Callable[[int], None],
    mode: int,
    temporary: Path,
    *,
    sync: bool = True,
    exclusive: bool = False,
) -> None:
    """Make a file by ``fill(fd)`` so that a crash at any point leaves the old content or the new.

    ``temporary``, its name until then, is in the same directory; what a crash left there goes.
    ``mode`` holds from the first byte on. Without ``sync`` a crash of this process is meant, not
    of the machine. Raises BlockingIOError when somebody else is writing it, OSError,
    FileExistsError among them when ``exclusive`` and the name is taken, and what ``fill`` raises;
    the file is then as it was.
    """
    fd = _open_alone(temporary, mode)
    try:
        try:
            fill(fd)
            if sync:
                os.fsync(fd)
            if exclusive:
                path.hardlink_to(temporary)
                temporary.unlink()
            else:
                temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    finally:
        os.close(fd)  # not before: whoever gets the lock may remove what has the name
    if sync:
        sync_directory(path.parent)


def _open_alone(path: Path, mode: int) -> int:
    """A new file, locked; one that nobody has locked any more is removed before."""
    new = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    left = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        try:
            fd, ours = os.open(path, new, mode), True
        except FileExistsError:
            try:
                fd, ours = os.open(path, left), False
            except FileNotFoundError:
                continue
        try:
            _lock(fd)
            # Its writer, or who takes it for left, may have been there just before.
            if _has_name(fd, path):
                if ours:
                    return fd
                path.unlink()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP}:  # file systems without any
            raise


def _has_name(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


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
