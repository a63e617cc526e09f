"""Takes out of a built tree what differs from one build to the next.

`TABLE` is the whole list; a manifest leaves rows out by their names in ``Keep``. All paths are
below ``/``: call it with the image as root, where no symlink leads anywhere else.

Generated on a machine's first boot are: the machine id (systemd), SSH host keys (cloud-init, or
``dpkg-reconfigure openssh-server``), random seeds (systemd). An initramfs, compiled Python and
shadow's dates follow SOURCE_DATE_EPOCH by themselves, as far as their tools know it.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECOND: Final = 10**9
DAY: Final = 86400


@dataclass(frozen=True)
class Row:
    """One kind of difference: its name in a manifest's ``Keep``, what is done, and how."""

    name: str
    what: str
    apply: Callable[[int], None]
    """Called with SOURCE_DATE_EPOCH, in seconds."""


def normalise(epoch: int, started_ns: int, keep: frozenset[str], plain: Path) -> None:
    """Apply every row of `TABLE` but ``keep``, and then the times; raises OSError.

    What has changed since ``started_ns``, and what claims to be newer than the epoch (s), is as
    old as the epoch. ``plain`` shows the same tree without what is mounted in it.
    """
    for row in TABLE:
        if row.name not in keep:
            row.apply(epoch)
    if TIMES not in keep:
        _clamp_times(plain, epoch * SECOND, started_ns)


def _remove(*patterns: str) -> Callable[[int], None]:
    def apply(_: int) -> None:
        for path in _matching(*patterns):
            _remove_tree(path)

    return apply


def _machine_id(epoch: int) -> None:
    machine_id = Path("/etc/machine-id")
    if _is_file(machine_id):
        os.truncate(machine_id, 0)
    if not Path("/var/lib/dbus/machine-id").is_symlink():
        _remove("/var/lib/dbus/machine-id")(epoch)


def _logs(_: int) -> None:
    """Logs are emptied: who may write to them stays as the packages have set it."""
    for where, directories, files in os.walk("/var/log"):
        directories.sort()
        for name in files:
            path = Path(where, name)
            if _REMOVED_LOGS.fullmatch(str(path)):
                path.unlink()
            elif _is_file(path):
                os.truncate(path, 0)


def _shadow(epoch: int) -> None:
    path = Path("/etc/shadow")
    if _is_file(path):
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(_older(line, epoch // DAY) for line in lines))


def _older(line: bytes, day: int) -> bytes:
    fields = line.split(b":")
    if len(fields) > 2 and fields[2].isdigit() and int(fields[2]) > day:
        fields[2] = b"%d" % day
    return b":".join(fields)


_REMOVED_LOGS: Final = re.compile(
    r"/var/log/((dpkg|alternatives|bootstrap|fontconfig)\.log|apt/.*|.*\.(gz|[0-9]))"
)

TIMES: Final = "times"
TABLE: Final = (
    Row("apt-caches", "downloaded packages and lists removed",
        _remove("/var/cache/apt/*.bin", "/var/cache/apt/archives/*.deb",
                "/var/cache/apt/archives/lock", "/var/cache/apt/archives/partial/*",
                "/var/lib/apt/lists/*")),
    Row("package-leftovers", "older copies of dpkg's and debconf's state removed",
        _remove("/var/lib/dpkg/*-old", "/var/cache/debconf/*-old", "/var/backups/*",
                "/var/lib/dpkg/available.*")),
    Row("account-backups", "passwd-, shadow- and their like removed",
        _remove("/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-",
                "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock")),
    Row("shadow-dates", "no password is newer than the epoch", _shadow),
    Row("logs", "logs of the build removed, others emptied", _logs),
    Row("machine-id", "emptied: the machine makes its own", _machine_id),
    Row("ssh-host-keys", "removed: the machine makes its own",
        _remove("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub")),
    Row("random-seeds", "removed",
        _remove("/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed",
                "/var/lib/systemd/credential.secret")),
    Row("linker-cache", "ldconfig's auxiliary cache, which has inode numbers, removed",
        _remove("/var/cache/ldconfig/aux-cache")),
    Row("search-caches", "caches of man pages and fonts removed",
        _remove("/var/cache/man/*", "/var/cache/fontconfig/*", "/var/lib/mlocate/*")),
    Row("temporary-files", "/var/tmp emptied", _remove("/var/tmp/*")),
)  # fmt: skip
"""Every row; `TIMES` is the last, and no function of a path."""
NAMES: Final = frozenset((*(row.name for row in TABLE), TIMES))


def _matching(*patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for below in path.iterdir():
            _remove_tree(below)
        path.rmdir()
    else:
        path.unlink()


def _clamp_times(top: Path, epoch_ns: int, started_ns: int) -> None:
    _clamp(str(top), epoch_ns, started_ns)
    for where, directories, files in os.walk(top):
        for name in (*directories, *files):
            _clamp(os.path.join(where, name), epoch_ns, started_ns)  # noqa: PTH118 - many


def _clamp(path: str, epoch_ns: int, started_ns: int) -> None:
    mtime = os.lstat(path).st_mtime_ns
    if mtime > epoch_ns or mtime >= started_ns:
        os.utime(path, ns=(epoch_ns, epoch_ns), follow_symlinks=False)
