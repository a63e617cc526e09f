"""What this machine has: processors, memory, space. Read, never touched."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Space:
    """A file system, in bytes; ``available`` is what an ordinary user can still take."""

    size: int
    available: int
    device: int = 0
    """Tells file systems apart."""
    free: int = 0
    """What root can still take."""


class Host(Protocol):
    """The machine as the ledger sees it; tests bring their own."""

    @property
    def milli_cpus(self) -> int:
        """Thousand for each processor."""

    @property
    def memory_mib(self) -> int:
        """All memory, MiB."""

    def available_mib(self) -> int:
        """Memory that could be given to a new process without swapping, MiB."""

    def space(self, directory: Path) -> Space:
        """The file system of a directory; OSError."""

    def written(self, file: Path) -> int:
        """Bytes that a (sparse) file takes on its disk; 0 when there is none."""


class LocalHost:
    """This machine."""

    def __init__(self, meminfo: Path = Path("/proc/meminfo")) -> None:
        self._meminfo = meminfo
        self._processors = len(os.sched_getaffinity(0))
        self._memory_mib = self._read("MemTotal") // MIB

    @property
    def milli_cpus(self) -> int:
        """Thousand for each processor the agent may use."""
        return self._processors * 1000

    @property
    def memory_mib(self) -> int:
        """MemTotal, MiB."""
        return self._memory_mib

    def available_mib(self) -> int:
        """MemAvailable of proc(5), MiB."""
        return self._read("MemAvailable") // MIB

    def space(self, directory: Path) -> Space:
        """The file system of a directory, statvfs(3)."""
        found = os.statvfs(directory)
        return Space(
            found.f_blocks * found.f_frsize,
            found.f_bavail * found.f_frsize,
            directory.stat().st_dev,
            found.f_bfree * found.f_frsize,
        )

    def written(self, file: Path) -> int:
        """Bytes that a (sparse) file takes on its disk; 0 when there is none."""
        try:
            return file.stat().st_blocks * 512
        except OSError:
            return 0

    def _read(self, name: str) -> int:
        """Bytes of one line of /proc/meminfo."""
        for line in self._meminfo.read_text().splitlines():
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
        raise LookupError(f"{self._meminfo} has no {name}")


def format_bytes(count: int) -> str:
    """``512 MiB``: a round figure for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} EiB"
