"""Large qcow2 images made of tables: their data clusters are holes of a sparse file.

So a terabyte that is fully allocated takes a second to make and a few hundred MiB of disk, and
every table is as dense as on a disk in use. Reference counts are right: ``qemu-img check`` finds
them clean.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CLUSTER: Final = 65536
_COPIED: Final = 1 << 63
_ENTRIES: Final = CLUSTER // 8
_COVERS: Final = _ENTRIES * CLUSTER


class Layout:
    """Hands out clusters of the file and counts references."""

    def __init__(self, path: Path, size: int) -> None:
        self.file = path.open("w+b")
        self.size = size
        self.next = 1
        self.twice: list[tuple[int, int]] = []

    def take(self, clusters: int) -> int:
        """The first of ``clusters`` in a row."""
        first = self.next
        self.next += clusters
        return first

    def put(self, cluster: int, data: bytes) -> None:
        """Write at a cluster."""
        self.file.seek(cluster * CLUSTER)
        self.file.write(data)

    def tables(self, tables: Sequence[array[int] | None]) -> int:
        """Write L2 tables (None: there is none) and their L1 table; the L1 table's cluster."""
        l1 = array("Q", bytes(8 * len(tables)))
        for index, table in enumerate(tables):
            if table is not None:
                place = self.take(1)
                self.put(place, swapped(table))
                l1[index] = place * CLUSTER | _COPIED
        place = self.take(-(-len(l1) * 8 // CLUSTER))
        self.put(place, swapped(l1))
        return place

    def finish(self, l1: int, snapshot: int | None = None, backing: str = "") -> None:
        """Write reference counts and the header, and close the file."""
        tables = -(-self.size // _COVERS)
        header = bytearray(CLUSTER)
        snapshots = 0
        if snapshot is not None:
            snapshots = self.take(1)
            entry = struct.pack(">QIHHIIQII", snapshot * CLUSTER, tables, 1, 4, 0, 0, 0, 0, 16)
            entry += struct.pack(">QQ", 0, self.size) + b"1then"
            self.put(snapshots, entry.ljust(64, b"\0"))
        per_block = CLUSTER // 2
        blocks = 1
        while blocks * per_block < self.next + blocks + 1 + blocks // _ENTRIES:
            blocks += 1
        table = self.take(-(-blocks * 8 // CLUSTER))
        first = self.take(blocks)
        counts = bytearray(b"\0\1" * self.next).ljust(blocks * CLUSTER, b"\0")
        for start, count in self.twice:
            counts[start * 2 : (start + count) * 2] = b"\0\2" * count
        self.put(first, bytes(counts))
        self.put(table, swapped(array("Q", ((first + i) * CLUSTER for i in range(blocks)))))
        name = backing.encode()
        extension = struct.pack(">II8sII", 0xE2792ACA, 5, b"qcow2", 0, 0) if backing else bytes(8)
        struct.pack_into(
            ">IIQIIQIIQQIIQQQQII", header, 0, 0x514649FB, 3, 104 + len(extension) if backing else 0,
            len(name), 16, self.size, 0, tables, l1 * CLUSTER, table * CLUSTER,
            -(-blocks * 8 // CLUSTER), 1 if snapshot is not None else 0, snapshots * CLUSTER,
            0, 0, 0, 4, 104,
        )  # fmt: skip
        body = extension + name
        header[104 : 104 + len(body)] = body
        self.put(0, bytes(header))
        self.file.truncate(self.next * CLUSTER)
        self.file.close()


def swapped(table: array[int]) -> bytes:
    """The numbers as the format has them: big-endian."""
    copy = array("Q", table)
    copy.byteswap()
    return copy.tobytes()


def empty(path: Path, size: int) -> None:
    """A disk with nothing allocated."""
    layout = Layout(path, size)
    layout.finish(layout.tables([None] * -(-size // _COVERS)))


def full(path: Path, size: int) -> None:
    """A disk with every cluster allocated, in order."""
    layout = Layout(path, size)
    first = layout.take(size // CLUSTER)
    layout.finish(layout.tables(_dense(first, size, _COPIED)))


def overlay(path: Path, size: int, changed: Sequence[int], backing: Path) -> int:
    """An overlay with the guest clusters ``changed`` (ascending).

    Their data is one piece of the file; returns its first byte, for whoever writes some there.
    """
    layout = Layout(path, size)
    first = layout.take(len(changed))
    tables: list[array[int] | None] = [None] * -(-size // _COVERS)
    for number, cluster in enumerate(changed):
        table = tables[cluster // _ENTRIES]
        if table is None:
            table = tables[cluster // _ENTRIES] = array("Q", bytes(CLUSTER))
        table[cluster % _ENTRIES] = (first + number) * CLUSTER | _COPIED
    layout.finish(layout.tables(tables), backing=backing.name)
    return first * CLUSTER


def with_snapshot(path: Path, size: int, changed: Sequence[int]) -> None:
    """A full disk with a snapshot ``then``, and ``changed`` written since."""
    layout = Layout(path, size)
    first = layout.take(size // CLUSTER)
    fresh = layout.take(len(changed))
    then = layout.tables(_dense(first, size, 0))
    tables = _dense(first, size, 0)
    for number, cluster in enumerate(changed):
        tables[cluster // _ENTRIES][cluster % _ENTRIES] = (fresh + number) * CLUSTER | _COPIED
    start = first
    for cluster in changed:
        layout.twice.append((start, first + cluster - start))
        start = first + cluster + 1
    layout.twice.append((start, first + size // CLUSTER - start))
    layout.finish(layout.tables(tables), snapshot=then)


def present_only(path: Path, size: int, changed: Sequence[int]) -> None:
    """What `with_snapshot` shows at the present, as a file of its own with the same places."""
    layout = Layout(path, size)
    first = layout.take(size // CLUSTER)
    fresh = layout.take(len(changed))
    tables = _dense(first, size, _COPIED)
    for number, cluster in enumerate(changed):
        tables[cluster // _ENTRIES][cluster % _ENTRIES] = (fresh + number) * CLUSTER | _COPIED
    layout.finish(layout.tables(tables))


def _dense(first: int, size: int, flag: int) -> list[array[int]]:
    count = size // CLUSTER
    return [
        array(
            "Q",
            range(
                (first + at) * CLUSTER | flag,
                (first + min(at + _ENTRIES, count)) * CLUSTER | flag,
                CLUSTER,
            ),
        )
        for at in range(0, count, _ENTRIES)
    ]
