"""A slow reader of qcow2 images: one read for every entry, nothing kept, one cluster at a time."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

Piece = tuple[str, object]
"""What stands for a subcluster: ("zero", None) or ("data", where it comes from)."""


class Reference:
    """An image at the present or at a snapshot (by index), with the files below it."""

    def __init__(self, path: Path, snapshot: int = -1) -> None:
        self.path = path
        self.raw = path.read_bytes()
        self.below: Reference | None = None
        self.is_raw = self.raw[:4] != b"QFI\xfb"
        if self.is_raw:
            self.size = len(self.raw)
            self.cluster = 512
            return
        raw = self.raw
        header = struct.unpack_from(">IIQIIQIIQQIIQ", raw)
        self.version, name_at, name_length, self.bits, self.size = header[1:6]
        self.l1_size, self.l1, self.snapshot_count, at = header[7], header[8], *header[11:]
        self.cluster = 1 << self.bits
        features = struct.unpack_from(">Q", raw, 72)[0] if self.version == 3 else 0
        self.extended, self.zstd = bool(features >> 4 & 1), bool(features >> 3 & 1)
        self.entry = 16 if self.extended else 8
        if name_at:
            name = raw[name_at : name_at + name_length].decode()
            self.below = Reference(path.parent / name)
        for number in range(self.snapshot_count):
            l1, l1_size, id_length, name_length = struct.unpack_from(">QIHH", raw, at)
            extra = struct.unpack_from(">I", raw, at + 36)[0]
            if number == snapshot:
                self.l1, self.l1_size = l1, l1_size
                if extra >= 16:
                    self.size = struct.unpack_from(">Q", raw, at + 48)[0]
            at += -(-(40 + extra + id_length + name_length) // 8) * 8

    def _word(self, at: int) -> int:
        value: int = struct.unpack_from(">Q", self.raw, at)[0]
        return value

    def entry_at(self, offset: int) -> tuple[int, int]:
        """The L2 entry and the subclusters of the cluster at ``offset``."""
        per_table = self.cluster // self.entry
        number = offset // self.cluster
        if number // per_table >= self.l1_size:
            return 0, 0
        table = self._word(self.l1 + number // per_table * 8) & 0x00FFFFFFFFFFFE00
        if not table:
            return 0, 0
        at = table + number % per_table * self.entry
        return self._word(at), self._word(at + 8) if self.extended else 0

    def piece(self, offset: int, length: int) -> Piece:
        """Where ``length`` bytes at ``offset`` come from; they lie in one subcluster."""
        if offset >= self.size:
            return "zero", None
        if self.is_raw:
            return "data", (self.path, offset)
        word, mask = self.entry_at(offset)
        within = offset % self.cluster
        if word >> 62 & 1:
            return "data", (self.path, "packed", word & (1 << 62) - 1, within)
        host = word & 0x00FFFFFFFFFFFE00
        if self.extended:
            bit = within // (self.cluster // 32)
            here, zero = mask >> bit & 1, mask >> (32 + bit) & 1
        else:
            here, zero = int(host != 0 and not word & 1), word & 1
        if here:
            return "data", (self.path, host + within)
        if zero or self.below is None:
            return "zero", None
        return self.below.piece(offset, length)

    def bytes_of(self, piece: Piece, length: int) -> bytes:
        """The bytes that a piece stands for."""
        if piece[0] == "zero":
            return bytes(length)
        where = piece[1]
        assert isinstance(where, tuple)
        reader: Reference = self
        while where[0] != reader.path:
            assert reader.below is not None
            reader = reader.below
        if where[1] == "packed":
            return reader._unpack(where[2])[where[3] : where[3] + length]
        return reader.raw[where[1] : where[1] + length].ljust(length, b"\0")

    def _unpack(self, descriptor: int) -> bytes:
        x = 62 - (self.bits - 8)
        host, sectors = descriptor & (1 << x) - 1, (descriptor >> x) + 1
        data = self.raw[host : (host // 512 + sectors) * 512]
        if self.zstd:
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return zlib.decompressobj(-12).decompress(data, self.cluster)

    def steps(self) -> Iterator[tuple[int, int]]:
        """Offsets and lengths of pieces small enough for every layer of the chain."""
        step = math.gcd(*(layer.step for layer in self.chain()))
        for offset in range(0, self.size, step):
            yield offset, min(step, self.size - offset)

    @property
    def step(self) -> int:
        """Bytes that are of one kind in this layer wherever they begin."""
        if self.is_raw:
            return 512
        return math.gcd(self.cluster // (32 if self.extended else 1), self.size)

    def chain(self) -> "Iterator[Reference]":
        """The layers from the top down."""
        yield self
        if self.below is not None:
            yield from self.below.chain()

    def read(self) -> bytes:
        """The whole disk."""
        return b"".join(self.bytes_of(self.piece(o, n), n) for o, n in self.steps())
