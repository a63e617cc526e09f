"""A process that reads an encoded image and writes its root disk, and the memory it takes.

``python -m bench.encoded DIRECTORY BYTES`` reads the file ``image`` of a directory, as an image
server keeps it, and writes ``disk`` of that many bytes beside it, from the objects in ``objects``
whose SHA-512 and BLAKE3 stand one after the other in ``digests``. It prints its peak memory in
bytes, the inodes, and the seconds both took.
"""

import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from smallstack.images import image_file
from smallstack.objects.store import ObjectStore
from smallstack.proto.filesystem import FileSystem, FileSystemBuilder
from smallstack.proto.image import Image
from smallstack.volumes.brick import write_disk

IMAGE: Final = "image"
OBJECTS: Final = "objects"
DIGESTS: Final = "digests"
DISK: Final = "disk"
DIRECTORIES: Final = 5000
FILES: Final = 199
MILLION_BYTES: Final = 6 << 30
"""A disk with room for a million inodes."""
_CONTENT: Final = b"content of one in ten files\n" * 100
_RECORD: Final = 64 + 32


class Peak(NamedTuple):
    """What such a process told."""

    bytes: int
    inodes: int
    seconds: float

    @property
    def limit(self) -> int:
        """What it may use: 64 MB, and 200 bytes an inode."""
        return 64 * 10**6 + 200 * self.inodes


def measure(place: Path, size: int) -> Peak:
    """Run the process over what `save` has left in ``place``; ``size`` in bytes of the disk."""
    command = [sys.executable, "-m", "bench.encoded", str(place), str(size)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return Peak(int(told[0]), int(told[1]), float(told[2]))


def save(place: Path, fs: FileSystem, digests: Mapping[bytes, bytes]) -> None:
    """Write the image and what is to be known of its objects, SHA-512 to BLAKE3."""
    image_file.write(place / IMAGE, Image(file_system=fs), exclusive=False)
    (place / DIGESTS).write_bytes(b"".join(sha + digest for sha, digest in digests.items()))


def save_million(place: Path) -> None:
    """`save` 5,000 directories of 199 files, every tenth of which has content, with the object."""
    store = ObjectStore(place / OBJECTS, with_blake3=True)
    content = store.put(_CONTENT)
    builder = FileSystemBuilder()
    for number in range(DIRECTORIES):
        directory = builder.add(mode=0o40755, mtime_ns=10**18 + number)
        builder.link(0, b"directory-%d" % number, directory)
        for file in range(FILES):
            full = file % 10 == 0
            index = builder.add(
                mode=0o100644,
                size=len(_CONTENT) if full else 0,
                hash=content if full else b"",
                mtime_ns=10**18 + file,
            )
            builder.link(directory, b"file-%d" % file, index)
    save(place, builder.build(), {content: store.verify(content).blake3})
    store.close()


class _Objects:
    """The objects as the writer sees the cache."""

    def __init__(self, place: Path) -> None:
        data = (place / DIGESTS).read_bytes()
        records = (data[at : at + _RECORD] for at in range(0, len(data), _RECORD))
        self.directory = place / OBJECTS
        self._digests = {record[:64]: record[64:] for record in records}

    def facts(self, hash_: bytes) -> tuple[bytes, int, int]:
        """What the object's bytes must hash to; each has a file of its own."""
        return self._digests[hash_], 0, 0

    async def drop(self, hashes: Iterable[bytes]) -> None:
        """Nothing is fetched here."""


def main() -> None:
    """Write the disk into the directory that is named on the command line."""
    place, size = Path(sys.argv[1]), int(sys.argv[2])
    started = time.monotonic()
    image, _ = image_file.read(place / IMAGE, Image)
    fs = image.file_system
    if fs is None:
        raise ValueError(f"{place / IMAGE} has no file system")
    write_disk(place / DISK, fs, _Objects(place), size, bytes(20))
    print(_peak_memory(), len(fs), time.monotonic() - started)


def _peak_memory() -> int:
    """Bytes; of this program alone (ru_maxrss still knows the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
