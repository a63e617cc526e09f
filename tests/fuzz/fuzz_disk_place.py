"""What a guest has written at the beginning of its disk: where its file system is, within the disk.

The first two bytes say how large the disk is, in sectors beyond what is written.
"""

import os

from smallstack.volumes.resize import SECTOR, find_file_system


def one_input(data: bytes) -> None:
    more, head = int.from_bytes(data[:2], "little"), data[2:]
    size = -(-len(head) // SECTOR) * SECTOR + more * SECTOR
    fd = os.memfd_create("disk")
    try:
        os.write(fd, head)
        os.ftruncate(fd, size)
        place = find_file_system(fd, size)
        if place is None:
            return
        assert 0 <= place.offset < place.offset + place.size <= size
        assert os.pread(fd, 2, place.offset + 0x438) == b"\x53\xef"
        assert (place.entry is None) == (place.offset == 0)
    finally:
        os.close(fd)
