"""Generated qcow2 images: every feature of the format, in places and orders QEMU would not choose.

An image has states (its snapshots, then the present) of guest clusters. States share L2 tables and
clusters where they agree. The parts of the file lie in a random order with gaps between them.
"""

import random
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

COPIED, PACKED = 1 << 63, 1 << 62
MOST_BYTES = 2 << 20


@dataclass(eq=False)
class Cluster:
    """A guest cluster: data (None: no place in the file), packed or not, which subclusters."""

    data: bytes | None
    packed: bool = False
    zero: bool = False
    here_mask: int = 0xFFFFFFFF
    zero_mask: int = 0


State = dict[int, Cluster]


@dataclass
class Image:
    """What an image is made of."""

    cluster_bits: int
    size: int
    version: int = 3
    extended: bool = False
    zstd: bool = False
    refcount_order: int = 4
    backing: tuple[str, str] | None = None
    states: list[State] = field(default_factory=lambda: [{}])
    sizes: list[int] = field(default_factory=list)
    """Of the disk in each snapshot."""
    bitmaps: list[tuple[str, int, set[int]]] = field(default_factory=list)
    """Name, log2 of the granularity, bits set."""

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def random_cluster(rng: random.Random, image: Image) -> Cluster:
    """One cluster of any kind that the image can have."""
    size = image.cluster
    kind = rng.choice(("data", "data", "zero", "zero place", "packed"))
    text = bytes([rng.randrange(1, 256)]) * size
    data = rng.randbytes(size) if rng.random() < 0.5 else text
    if kind == "packed":
        half = size // 2
        return Cluster(rng.randbytes(half // 2).ljust(half, b"p") + text[half:], packed=True)
    if image.extended:
        here = rng.getrandbits(32) | rng.getrandbits(32)
        zero = rng.getrandbits(32) & ~here & rng.getrandbits(32)
        if rng.random() < 0.3:
            here, zero = 0xFFFFFFFF, 0
        if rng.random() < 0.2:
            return Cluster(None, here_mask=0, zero_mask=rng.getrandbits(32))
        return Cluster(data, here_mask=here, zero_mask=zero)
    if kind == "data" or image.version == 2:
        return Cluster(data)
    return Cluster(data if kind == "zero place" else None, zero=True)


def random_image(rng: random.Random, *, most: int = 40, backing: bool = False) -> Image:
    """An image of at most ``most`` clusters written, without the name of a backing file."""
    version = rng.choice((2, 3, 3, 3))
    extended = version == 3 and rng.random() < 0.35
    bits = rng.choice((14, 14, 15)) if extended else rng.choice((9, 9, 10, 11, 12, 12, 13, 14, 16))
    clusters = min(rng.choice((3, 20, 70, 300, 2000)), MOST_BYTES >> bits)
    size = max(512, clusters * (1 << bits) - rng.choice((0, 0, 512, (1 << bits) // 2)))
    size = size // 512 * 512
    image = Image(
        bits,
        size,
        version=version,
        extended=extended,
        zstd=version == 3 and rng.random() < 0.4,
        refcount_order=4 if version == 2 else rng.choice((1, 2, 3, 4, 4, 4, 5, 6)),
    )
    limit = {0: 0, 1: 1, 2: 2}.get(image.refcount_order, 3)
    image.states = [{}]
    for epoch in range(rng.randrange(limit + 1) + 1):
        if epoch:
            image.states.append(dict(image.states[-1]))
            image.sizes.append(image.size)
        state = image.states[-1]
        at = rng.randrange(clusters)
        for _ in range(rng.randrange(most // (epoch + 1) + 1)):
            at = rng.randrange(clusters) if rng.random() < 0.4 else (at + 1) % clusters
            if at * image.cluster >= image.size:
                continue
            if rng.random() < 0.1:
                state.pop(at, None)
            else:
                state[at] = random_cluster(rng, image)
    if version == 3 and not backing and rng.random() < 0.4:
        for number in range(rng.randrange(1, 3)):
            shift = rng.choice((9, 12, 16, 18))
            bits_there = -(-image.size >> shift)
            dirty = {rng.randrange(bits_there) for _ in range(rng.randrange(30))}
            first = rng.randrange(bits_there)
            dirty |= set(range(first, min(first + rng.randrange(200), bits_there)))
            image.bitmaps.append((f"bitmap{number}", shift, dirty))
    return image


class _Writer:
    def __init__(self, image: Image, rng: random.Random) -> None:
        self.image, self.rng = image, rng
        self.places: dict[int, bytes] = {}
        self.refs: dict[int, int] = {0: 1}
        self.next = 1
        self.pool: list[int] = []
        self.packed_at = 0
        self.packed_end = 0

    def take(self, count: int = 1) -> int:
        """A place for ``count`` clusters in a row; the number of the first."""
        if count == 1 and self.pool and self.rng.random() < 0.7:
            return self.pool.pop(self.rng.randrange(len(self.pool)))
        for _ in range(self.rng.randrange(3)):
            self.pool.append(self.next)
            self.next += 1
        first = self.next
        self.next += count
        return first

    def put(self, first: int, data: bytes, refs: int = 1) -> None:
        size = self.image.cluster
        for i in range(-(-len(data) // size)):
            self.places[first + i] = data[i * size : (i + 1) * size]
            self.refs[first + i] = self.refs.get(first + i, 0) + refs

    def pack(self, data: bytes, refs: int) -> int:
        """Puts a compressed cluster behind the last one; its descriptor."""
        size, bits = self.image.cluster, self.image.cluster_bits
        if self.image.zstd:
            packed = zstandard.ZstdCompressor(level=3).compress(data)
        else:
            tool = zlib.compressobj(6, zlib.DEFLATED, -12)
            packed = tool.compress(data) + tool.flush()
        # A cluster that many share needs a count wide enough.
        if self.image.refcount_order < 3 or self.packed_at + len(packed) > self.packed_end:
            clusters = 1 + -(-len(packed) // size)
            self.packed_at = self.take(clusters) * size
            self.packed_end = self.packed_at + clusters * size
        at = self.packed_at
        self.packed_at += len(packed)
        x = 62 - (bits - 8)
        sectors = (at + len(packed) - 1) // 512 - at // 512
        end = (at // 512 + sectors + 1) * 512
        for number in range(at // size, (end - 1) // size + 1):
            self.refs[number] = self.refs.get(number, 0) + refs
            old = bytearray(self.places.get(number, b"").ljust(size, b"\0"))
            from_, to = max(at, number * size), min(at + len(packed), (number + 1) * size)
            if from_ < to:
                old[from_ - number * size : to - number * size] = packed[from_ - at : to - at]
            self.places[number] = bytes(old)
        if end > self.packed_end:
            self.packed_at = self.packed_end  # the last sector reached beyond what was taken
        return PACKED | sectors << x | at


def write_image(image: Image, path: Path, rng: random.Random) -> None:
    """Lay the image out as a file."""
    w = _Writer(image, rng)
    size, entry = image.cluster, 16 if image.extended else 8
    per_table = size // entry
    tables = -(-image.size // (size * per_table))
    # Which tables there are, and how many states refer to each.
    unique: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    content: dict[tuple[tuple[int, int], ...], dict[int, Cluster]] = {}
    for number, state in enumerate(image.states):
        for table in range(tables):
            here = (
                {
                    i: state[table * per_table + i]
                    for i in range(per_table)
                    if table * per_table + i in state
                }
                if any(k // per_table == table for k in state)
                else {}
            )
            if here:
                key = (table, 0), *((i, id(c)) for i, c in here.items())
                unique.setdefault(key, []).append((number, table))
                content[key] = here
    cluster_refs: dict[int, int] = {}
    for key, users in unique.items():
        for _, cluster_id in key[1:]:
            cluster_refs[cluster_id] = cluster_refs.get(cluster_id, 0) + len(users)
    words: dict[int, int] = {}
    for here in content.values():
        for cluster in here.values():
            if id(cluster) in words:
                continue
            refs = cluster_refs[id(cluster)]
            if cluster.data is None:
                words[id(cluster)] = 0
            elif cluster.packed:
                words[id(cluster)] = w.pack(cluster.data, refs)
            else:
                first = w.take()
                w.put(first, cluster.data, refs)
                words[id(cluster)] = first * size
    l1s = [[0] * tables for _ in image.states]
    present = len(image.states) - 1
    for key, users in unique.items():
        first = w.take()
        raw = bytearray(size)
        only = len(users) == 1
        for i, cluster in content[key].items():
            word = words[id(cluster)]
            mask = 0
            if image.extended and not cluster.packed:
                mask = cluster.zero_mask << 32 | cluster.here_mask
            elif cluster.zero:
                word |= 1
            if cluster.data is not None and not cluster.packed and cluster_refs[id(cluster)] == 1:
                word |= COPIED
            struct.pack_into(">Q", raw, i * entry, word)
            if image.extended:
                struct.pack_into(">Q", raw, i * entry + 8, mask)
        w.put(first, bytes(raw), len(users))
        for number, table in users:
            flag = COPIED if only and number == present else 0
            l1s[number][table] = first * size | flag
    places = []
    for l1 in l1s:
        data = struct.pack(f">{tables}Q", *l1)
        first = w.take(-(-len(data) // size))
        w.put(first, data)
        places.append(first * size)
    snapshots = _snapshots(image, w, places, tables)
    extensions = _bitmaps(image, w)
    _finish(image, w, path, places[-1], tables, snapshots, extensions)


def _snapshots(image: Image, w: _Writer, places: list[int], tables: int) -> int:
    count = len(image.states) - 1
    raw = b""
    for i in range(count):
        name, number = f"name{i}".encode(), str(i + 1).encode()
        extra = struct.pack(">QQ", 0, image.sizes[i]) if image.version == 3 else b""
        one = struct.pack(
            ">QIHHIIQII",
            places[i],
            tables,
            len(number),
            len(name),
            1700000000 + i,
            5,
            0,
            0,
            len(extra),
        )
        one += extra + number + name
        raw += one.ljust(-(-len(one) // 8) * 8, b"\0")
    if not count:
        return 0
    first = w.take(-(-len(raw) // image.cluster))
    w.put(first, raw)
    return first * image.cluster


def _bitmaps(image: Image, w: _Writer) -> bytes:
    if not image.bitmaps:
        return b""
    size = image.cluster
    directory = b""
    for name, shift, dirty in image.bitmaps:
        bits = -(-image.size >> shift)
        length = (bits + 7) // 8
        data = bytearray(-(-length // size) * size)
        for bit in dirty:
            data[bit // 8] |= 1 << bit % 8
        table = []
        for at in range(0, len(data), size):
            piece = bytes(data[at : at + size])
            if not any(piece):
                table.append(0)
            elif piece == b"\xff" * size:
                table.append(1)
            else:
                first = w.take()
                w.put(first, piece)
                table.append(first * size)
        raw = struct.pack(f">{len(table)}Q", *table)
        first = w.take(-(-len(raw) // size))
        w.put(first, raw)
        text = name.encode()
        one = struct.pack(">QIIBBHI", first * size, len(table), 0, 1, shift, len(text), 0) + text
        directory += one.ljust(-(-len(one) // 8) * 8, b"\0")
    first = w.take(-(-len(directory) // size))
    w.put(first, directory)
    body = struct.pack(">IIQQ", len(image.bitmaps), 0, len(directory), first * size)
    return struct.pack(">II", 0x23852875, 24) + body


def _finish(
    image: Image, w: _Writer, path: Path, l1: int, tables: int, snapshots: int, extensions: bytes
) -> None:
    size, order = image.cluster, image.refcount_order
    in_block = size * 8 >> order
    blocks = table_clusters = 1
    while True:  # the counts need room, which has to be counted too
        total = w.next + blocks + table_clusters
        want = -(-total // in_block)
        want_table = -(-want * 8 // size)
        if (want, want_table) == (blocks, table_clusters):
            break
        blocks, table_clusters = max(blocks, want), max(table_clusters, want_table)
    first_table = w.next
    first_block = first_table + table_clusters
    total = first_block + blocks
    for number in range(first_table, total):
        w.refs[number] = 1
    raw = bytearray(blocks * size)
    for number, refs in w.refs.items():
        width = 1 << order
        assert refs < 1 << width, "a reference count does not fit"
        if order < 3:
            raw[number * width // 8] |= refs << number * width % 8
        else:
            at = number * (width // 8)
            raw[at : at + width // 8] = refs.to_bytes(width // 8, "big")
    table = struct.pack(f">{blocks}Q", *((first_block + i) * size for i in range(blocks)))
    header = bytearray(size)
    version3 = image.version == 3
    name = image.backing[0].encode() if image.backing else b""
    if image.backing:
        kind = image.backing[1].encode()
        extensions += struct.pack(">II", 0xE2792ACA, len(kind)) + kind.ljust(8, b"\0")
    extensions += bytes(8)
    length = 112 if image.zstd else 104 if version3 else 72
    struct.pack_into(
        ">IIQIIQIIQQIIQ",
        header,
        0,
        0x514649FB,
        image.version,
        length + len(extensions) if name else 0,
        len(name),
        image.cluster_bits,
        image.size,
        0,
        tables,
        l1,
        first_table * size,
        table_clusters,
        len(image.states) - 1,
        snapshots,
    )
    if version3:
        features = image.extended << 4 | image.zstd << 3
        struct.pack_into(
            ">QQQII", header, 72, features, 0, 1 if image.bitmaps else 0, order, length
        )
        if image.zstd:
            header[104] = 1
    body = extensions + name
    assert length + len(body) <= size
    header[length : length + len(body)] = body
    with path.open("wb") as file:
        file.write(header)
        for number, data in w.places.items():
            file.seek(number * size)
            file.write(data)
        file.seek(first_table * size)
        file.write(table.ljust(table_clusters * size, b"\0") + raw)


def write_chain(directory: Path, seed: int) -> Path:
    """One to three files, each over the next; the topmost. Everything follows from the seed."""
    rng = random.Random(seed)
    below: tuple[str, str] | None = None
    path = directory / "none"
    for depth in range(rng.choice((1, 1, 2, 2, 3))):
        path = directory / f"{seed}-{depth}"
        if depth == 0 and rng.random() < 0.25:
            size = rng.randrange(1, 600) * 512
            data = bytearray(rng.randbytes(size))
            hole = rng.randrange(size)
            data[hole : hole + 20000] = bytes(len(data[hole : hole + 20000]))
            path.write_bytes(data)
            below = (path.name, "raw")
            continue
        image = random_image(rng, backing=below is not None)
        image.backing = below
        write_image(image, path, rng)
        below = (path.name, "qcow2")
    return path
