"""Writes a root from packed tables in files; prints peak memory in bytes, inodes and seconds."""

import sys
import time
from pathlib import Path

from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.volumes.brick import write_disk
from tests.volumes.trees import Objects

DIRECTORIES = 5000
FILES = 199
TABLES = ("inodes", "entries", "blob")
CONTENT = b"content of one in ten files\n" * 100


def make(place: Path) -> None:
    """Save the tables of 5,000 directories of 199 files; every tenth file has content."""
    builder = FileSystemBuilder()
    content = Objects(place / "objects").add(CONTENT)
    for number in range(DIRECTORIES):
        directory = builder.add(mode=0o40755, mtime_ns=10**18 + number)
        builder.link(0, b"directory-%d" % number, directory)
        for file in range(FILES):
            full = file % 10 == 0
            index = builder.add(
                mode=0o100644,
                size=len(CONTENT) if full else 0,
                hash=content if full else b"",
                mtime_ns=10**18 + file,
            )
            builder.link(directory, b"file-%d" % file, index)
    fs = builder.build()
    for name in TABLES:
        (place / name).write_bytes(getattr(fs, name))


def main() -> None:
    """Write the disk into the directory that is named on the command line."""
    place = Path(sys.argv[1])
    objects = Objects(place / "objects")
    objects.add(CONTENT)
    fs = FileSystem(
        *((place / name).read_bytes() for name in TABLES),
        num_regular_inodes=0,
        total_data_bytes=0,
        directory_count=0,
    )
    started = time.monotonic()
    write_disk(place / "disk", fs, objects, 6 << 30, bytes(20))
    seconds = time.monotonic() - started
    print(peak_memory(), len(fs), seconds)


def peak_memory() -> int:
    """Bytes; of this program alone (ru_maxrss still knows the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
