"""Checking many objects at once, and where they lie in a pack: beside hashlib and blake3."""

import errno
import hashlib
import os
import resource
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.objects import pack
from smallstack.objects.packs import ALIGN, Packs, PackWriter, Part, padded
from smallstack.objects.store import Stored

EDGES = [0, 1, 110, 111, 112, 113, 127, 128, 129, 239, 240, 255, 256, 257, 4095, 4096, 4097, 70_000]
sizes = st.lists(st.sampled_from(EDGES) | st.integers(0, 3000), max_size=40)


def content(size: int, seed: int) -> bytes:
    return (hashlib.sha256(b"%d" % seed).digest() * (size // 32 + 1))[:size]


@pytest.mark.parametrize("lanes", [1, 4, 8])
@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 1000))
def test_sha512_in_lanes_is_hashlibs(lanes: int, sizes: list[int], seed: int) -> None:
    messages = [content(size, seed + n) for n, size in enumerate(sizes)]
    if lanes > pack.sha512_lanes():
        with pytest.raises(ValueError, match=f"no SHA-512 kernel of {lanes} lanes"):
            pack.sha512_many(messages, lanes)
        return
    found = pack.sha512_many(messages, lanes)
    assert found == [hashlib.sha512(message).digest() for message in messages]


def test_no_such_kernel() -> None:
    with pytest.raises(ValueError, match="no SHA-512 kernel of 3 lanes"):
        pack.sha512_many([b"x"], 3)


def parts_of(messages: list[bytes]) -> list[Part]:
    buffer = b"?" + b"".join(messages)
    parts: list[Part] = []
    at = 1
    for message in messages:
        parts.append((hashlib.sha512(message).digest(), buffer, at, len(message)))
        at += len(message)
    return parts


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 1000), wrong=st.none() | st.integers(0, 39))
def test_what_is_before_the_first_wrong_one_lies_in_the_pack(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, wrong: int | None
) -> None:
    messages = [content(size, seed + n) for n, size in enumerate(sizes) if size]
    parts = parts_of(messages)
    if wrong is not None and wrong < len(parts):
        for number in (wrong, len(parts) - 1):  # the first one is told of
            _, buffer, at, size = parts[number]
            parts[number] = (b"!" * 64, buffer, at, size)
    right = len(parts) if wrong is None else min(wrong, len(parts))
    packs = Packs(tmp_path_factory.mktemp("packs"), ())
    writer = PackWriter(packs)
    entered = writer.enter(parts)
    assert entered.right == right
    blake3s = [blake3(message).digest() for message in messages[:right]]
    assert [(one.hash, one.blake3) for one in entered.stored] == [
        (part[0], digest) for part, digest in zip(parts, blake3s, strict=False)
    ]
    assert pack.check(parts) == (right, blake3s)
    at = 0
    path = Path(packs.path(1))
    whole = path.read_bytes()
    for message, spot in zip(messages, entered.stored, strict=False):
        assert (spot.pack, spot.offset, spot.size) == (1, at, len(message))
        at += padded(len(message))
        assert whole[spot.offset : at] == message.ljust(padded(len(message)), b"\0")
    assert len(whole) == at
    assert at % ALIGN == 0
    writer.take_back(entered.stored)
    writer.close()
    assert not path.exists()


@pytest.mark.parametrize("wrong", [None, 0, 3, 40, 79])
def test_two_threads_enter_what_one_would(tmp_path: Path, wrong: int | None) -> None:
    messages = [content(7_000 + 911 * n, n) for n in range(80)]  # 3.4 MB: more than one thread's
    parts = parts_of(messages)
    if wrong is not None:
        _, buffer, at, size = parts[wrong]
        parts[wrong] = (bytes(64), buffer, at, size)
    right = len(parts) if wrong is None else wrong
    with (tmp_path / "pack").open("w+b") as file:
        found, stored, end, error = pack.enter(file.fileno(), 0, parts, 7, Stored)
        assert (found, error) == (right, 0)
        assert end == sum(padded(len(message)) for message in messages[:right])
        assert [one.blake3 for one in stored] == [blake3(m).digest() for m in messages[:right]]
        assert {(one.pack, one.added) for one in stored} <= {(7, True)}
        at = 0
        for message in messages[:right]:
            file.seek(at)
            assert file.read(len(message)) == message
            at += padded(len(message))


LARGE_EDGES = [1, 4096, 131_072, 131_073, 262_143, 262_144, 262_145, 393_216, 1 << 20, 5000]


@pytest.mark.parametrize("wrong", [None, 0, 5, 9])
def test_sizes_at_which_objects_are_hashed_another_way(tmp_path: Path, wrong: int | None) -> None:
    messages = [content(size, size) for size in LARGE_EDGES]
    parts = parts_of(messages)
    if wrong is not None:
        _, buffer, at, size = parts[wrong]
        parts[wrong] = (bytes(64), buffer, at, size)
    right = len(parts) if wrong is None else wrong
    blake3s = [blake3(message).digest() for message in messages[:right]]
    assert pack.check(parts) == (right, blake3s)
    with (tmp_path / "pack").open("w+b") as file:
        found, stored, _, error = pack.enter(file.fileno(), 0, parts, 7, Stored)
        assert (found, error) == (right, 0)
        assert [one.blake3 for one in stored] == blake3s
        for one, message in zip(stored, messages, strict=False):
            _, alone, _, _ = pack.enter(-1, 0, parts_of([message]), 7, Stored)
            assert one.sum == alone[0].sum
            file.seek(one.offset)
            assert file.read(padded(one.size)) == message.ljust(padded(one.size), b"\0")


@pytest.mark.parametrize("wrong", [None, 3])
def test_room_that_lacks_for_what_is_not_kept_is_no_error(
    tmp_path: Path, wrong: int | None
) -> None:
    messages = [content(7_000 + 911 * n, n) for n in range(80)]
    parts = parts_of(messages)
    if wrong is not None:
        _, buffer, at, size = parts[wrong]
        parts[wrong] = (bytes(64), buffer, at, size)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "pack").open("w+b") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limits[1]))
        try:
            found, stored, _, error = pack.enter(file.fileno(), 0, parts, 7, Stored)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if wrong is None:
            assert error == -errno.EFBIG
            return
        assert (found, error) == (wrong, 0)
        assert [one.blake3 for one in stored] == [blake3(m).digest() for m in messages[:wrong]]
        file.seek(0)
        assert file.read(len(messages[0])) == messages[0]


def test_an_object_outside_of_its_buffer() -> None:
    for at, size in ((0, 0), (0, 4), (3, 1), (1 << 63, 1), (2, (1 << 64) - 1)):
        with pytest.raises(ValueError, match="outside of its buffer"):
            pack.check([(bytes(64), b"abc", at, size)])
    with pytest.raises(ValueError, match="outside of its buffer"):
        pack.check([(bytes(63), b"abc", 0, 3)])


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [65_535, 65_536, 65_537],
        [200_000, 1, 131_072, 77] * 5,
        [1 << 20, 3_000_000, (1 << 20) + 1],
    ],
)
def test_files_read_side_by_side(tmp_path: Path, sizes: list[int]) -> None:
    contents = [content(size, n) for n, size in enumerate(sizes)]
    fds = []
    for number, data in enumerate(contents):
        (tmp_path / str(number)).write_bytes(data)
        fds.append(os.open(tmp_path / str(number), os.O_RDONLY))
    try:
        found = digests(list(zip(fds, sizes, strict=True)))
        short = digests([(fds[0], sizes[0] + 1), (fds[-1], sizes[-1])])
    finally:
        for fd in fds:
            os.close(fd)
    assert found == [(hashlib.sha512(d).digest(), blake3(d).digest(), 0) for d in contents]
    assert os.strerror(-short[0][2]) == "No data available"
    assert short[1] == found[-1]
    with pytest.raises(ValueError, match="at least one byte"):
        digests([(0, 0)])


def digests(files: list[tuple[int, int]]) -> list[tuple[bytes, bytes, int]]:
    """SHA-512, BLAKE3 and 0 or a negative errno of (descriptor, bytes); one joins as one ends."""
    reader: pack.Digests[int] = pack.Digests()
    found: dict[int, tuple[bytes, bytes, int]] = {}
    for number, (fd, size) in enumerate(files):
        while reader.full:
            found.update((n, (sha, blake, error)) for n, sha, blake, _, error in reader.read(1))
        reader.add(fd, size, number)
    assert reader.full == (len(files) - len(found) == 8)
    while reader.reading:
        found.update((n, (sha, blake, error)) for n, sha, blake, _, error in reader.read(3))
    return [found[number] for number in range(len(files))]


def crc32c(words: bytes) -> bytes:
    """The register behind these bytes, which began as all ones; slowly."""
    crc = 0xFFFFFFFF
    for byte in words:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc.to_bytes(4, sys.byteorder)


def quick_sum(data: bytes) -> bytes:
    """As csrc/quick_sum.h has it: the reference."""
    data = data.ljust((len(data) + 31) // 32 * 32, b"\0")
    words = [data[at : at + 8] for at in range(0, len(data), 8)]
    return b"".join(crc32c(b"".join(words[n::4])) for n in range(4))


@pytest.mark.parametrize("size", [1, 7, 31, 32, 33, 4096, 65_536, 65_537, 140_000])
def test_quick_sums(tmp_path: Path, size: int) -> None:
    """Of an object in a pack, and of one that has a file."""
    data = content(size, size)
    path = tmp_path / "file"
    with path.open("w+b") as file:
        _, stored, _, _ = pack.enter(file.fileno(), 0, parts_of([data]), 1, Stored)
    assert [one.sum for one in stored] == [quick_sum(data)]
    path.write_bytes(data)
    reader: pack.Digests[int] = pack.Digests()
    with path.open("rb") as file:
        reader.add(file.fileno(), size, 1)
        found: list[bytes] = []
        while reader.reading:
            found += [sum_ for _, _, _, sum_, _ in reader.read(1)]
    assert found == [quick_sum(data)]


def test_no_more_files_than_are_read_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    reader: pack.Digests[int] = pack.Digests()
    try:
        for number in range(8):
            reader.add(fd, 1, number)
        with pytest.raises(ValueError, match="as many files"):
            reader.add(fd, 1, 8)
        assert sorted(done[0] for done in reader.read(1)) == list(range(8))
    finally:
        os.close(fd)
