"""A share of the processors for every machine: control groups, version 2 where it has them, else 1.

Formats: cgroups(7) and Documentation/admin-guide/{cgroup-v1,cgroup-v2.rst} of the kernel::

    <base>/agent/                   the agent itself; only in a unit that systemd delegates
          /smallstack-<dev>-<ino>/  one agent's machines, named by its state directory
                       /<ip>/       one machine

``base`` is, on version 2, the agent's unit if systemd has delegated it and put the agent itself
into a group below (``Delegate=``, ``DelegateSubgroup=agent``: without the latter it could not
start another agent beside machines that live on), else the root of what is mounted; on version 1
the agent's own group. All machines together weigh as much as the machine has processors, and each
of them as much as its milliCPUs: a weight holds nobody back while nobody else wants the processor.

A group outlives its agent, as its machine does. It goes with the machine; what a ``kill -9`` leaves
empty goes at the next start of any agent: a lock on an agent's directory tells whether it lives.
Everything here blocks, for well under a millisecond where nobody else moves processes.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from smallstack.machine.errors import CgroupError
from smallstack.telemetry.errors import describe

_log = logging.getLogger("smallstack.machine")
Version = Literal[1, 2]
PREFIX: Final = "smallstack-"
OWN_GROUP: Final = "agent"
_ONE_PROCESSOR: Final[dict[Version, int]] = {1: 1024, 2: 100}
_LIMITS: Final[dict[Version, tuple[int, int]]] = {1: (2, 1 << 18), 2: (1, 10_000)}
_WEIGHT_FILE: Final[dict[Version, str]] = {1: "cpu.shares", 2: "cpu.weight"}
_NICE_STEP: Final = 1.25
"""What one step of niceness is worth (sched_prio_to_weight in the kernel's scheduler)."""
_PERIOD: Final = 100_000
_LEAST_QUOTA: Final = 1000
"""Microseconds, as the period."""
_DELEGATED: Final = ("trusted.delegate", "user.delegate")


@dataclass(frozen=True, slots=True)
class CpuShare:
    """What a machine has of the processors; ``hard``: no more than that, even when they idle."""

    milli_cpus: int
    nice: int = 0
    hard: bool = False

    def settings(self, version: Version) -> dict[str, str]:
        """Text by name of file."""
        weight = _weight(self.milli_cpus / 1000 * _NICE_STEP**-self.nice, version)
        found = {_WEIGHT_FILE[version]: str(weight)}
        if self.hard:
            quota = max(_LEAST_QUOTA, self.milli_cpus * _PERIOD // 1000)
            if version == 1:
                found |= {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota)}
            else:
                found["cpu.max"] = f"{quota} {_PERIOD}"
        return found


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """The group of one machine, which may not be there yet."""

    path: Path
    version: Version
    share: CpuShare

    @property
    def entrance(self) -> bytes | None:
        """The file that takes a single thread at once; version 2 has none (see csrc/spawn.c)."""
        return b"tasks" if self.version == 1 else None

    def open(self) -> int:
        """Make the group, or take the one that is there; a descriptor of it. Raises OSError."""
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o755)
        try:
            self.set()
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            remove_group(self.path)
            raise

    def set(self) -> None:
        """Give it its share. Raises OSError."""
        for name, value in self.share.settings(self.version).items():
            _write(self.path / name, value)


class CpuGroups:
    """Where the machines of one agent have their groups. Close it: then another may sweep them."""

    def __init__(self, directory: Path, version: Version, *, quota: bool = False) -> None:
        """Use `open_groups`. Raises OSError."""
        self.directory = directory
        self.version: Version = version
        self._quota = quota
        self._lock = _make_and_lock(directory)
        try:
            _write(directory / _WEIGHT_FILE[version], str(_weight(os.cpu_count() or 1, version)))
            if version == 2:
                _write(directory / "cgroup.subtree_control", "+cpu")
        except OSError:
            self.close()
            raise

    def group(self, name: str, milli_cpus: int, nice: int = 0) -> CpuGroup:
        """The group of the machine of that name."""
        share = CpuShare(milli_cpus, nice, self._quota)
        return CpuGroup(self.directory / name, self.version, share)

    def close(self) -> None:
        """Leave the groups that have a machine, and remove the directory if none has."""
        if self._lock < 0:
            return
        with suppress(OSError):
            self.directory.rmdir()
        os.close(self._lock)
        self._lock = -1


def open_groups(name: str, *, quota: bool = False, proc: Path = Path("/proc/self")) -> CpuGroups:
    """The groups of the agent of that name; groups of any agent that hold nobody are removed.

    ``proc`` is where the process's own ``mountinfo`` and ``cgroup`` are read. Raises CgroupError.
    """
    reasons = []
    try:
        for base, version in _bases(proc):
            try:
                if version == 2:
                    _prepare(base)
                groups = CpuGroups(base / (PREFIX + name), version, quota=quota)
            except OSError as error:
                reasons.append(f"{base}: {describe(error)}")
                continue
            _sweep(groups.directory)
            return groups
    except OSError as error:
        reasons.append(describe(error))
    raise CgroupError(
        detail="; ".join(reasons) or "no hierarchy with the cpu controller is mounted"
    )


def state_name(directory: Path) -> str:
    """The name of the agent whose state directory this is: one of a kind on this machine."""
    found = directory.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}"


def remove_group(path: Path) -> None:
    """Remove a machine's group; one that is gone, or still holds somebody, is left to a sweep."""
    if not path.parent.name.startswith(PREFIX):
        return
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.debug("%s stays for now: %s", path, describe(error))


def _weight(processors: float, version: Version) -> int:
    least, most = _LIMITS[version]
    return min(max(round(processors * _ONE_PROCESSOR[version]), least), most)


def _write(path: Path, value: str) -> None:
    path.write_text(value + "\n")


def _bases(proc: Path) -> Iterator[tuple[Path, Version]]:
    """Where groups could be made, the best first. Raises OSError."""
    own = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    mounts = list(_mounts(proc))
    for kind, _, root, point in mounts:
        if kind == "cgroup2" and "cpu" in _controllers(point):
            mine = _below(point, root, own.get("", "/"))
            if mine.name == OWN_GROUP and _is_delegated(mine.parent):
                yield mine.parent, 2
            yield point, 2
    for kind, options, root, point in mounts:
        if kind == "cgroup" and "cpu" in options:
            yield _below(point, root, own.get("cpu", "/")), 1


def _mounts(proc: Path) -> Iterator[tuple[str, list[str], str, Path]]:
    """File system, its options, root and mount point: proc_pid_mountinfo(5)."""
    for line in (proc / "mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        kind, _, options = fields[fields.index(b"-") + 1 :][:3]
        if kind.startswith(b"cgroup"):
            root, point = (
                os.fsdecode(field.decode("unicode_escape").encode("latin-1"))
                for field in fields[3:5]
            )
            yield kind.decode(), options.decode().split(","), root, Path(point)


def _controllers(directory: Path) -> list[str]:
    try:
        return (directory / "cgroup.controllers").read_text().split()
    except OSError:
        return []


def _below(point: Path, root: str, path: str) -> Path:
    """The directory of a group in a mount that may show only a part of the hierarchy."""
    try:
        return point / Path(path).relative_to(root)
    except ValueError:
        return point


def _is_delegated(group: Path) -> bool:
    """Whether systemd has said that this group is its unit's own."""
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _prepare(base: Path) -> None:
    """Let groups below have the controller, if they have not. Raises OSError."""
    control = base / "cgroup.subtree_control"
    if "cpu" not in control.read_text().split():
        _write(control, "+cpu")


def _make_and_lock(directory: Path) -> int:
    """A locked descriptor of the directory; a sweep may remove it at any time before."""
    while True:
        directory.mkdir(mode=0o755, exist_ok=True)
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_ino == directory.stat().st_ino:
                return fd
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _sweep(own: Path) -> None:
    """Remove the empty groups of the agent whose directory is ``own`` and of those that ended."""
    _remove_empty(own)
    for directory in own.parent.glob(PREFIX + "*"):
        if directory == own:
            continue
        with suppress(OSError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_empty(directory)
                directory.rmdir()
            finally:
                os.close(fd)


def _remove_empty(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            remove_group(Path(entry.path))
