"""Our BLAKE3 beside the one on the package index."""

import os
import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from smallstack.volumes import ext4

# Around every border of the tree: blocks of 64, chunks of 1024, subtrees, the 256 chunks at a time.
SIZES = [
    0, 1, 63, 64, 65, 127, 128, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 4096, 4097, 5120,
    8191, 8192, 8193, 16384, 31744, 65535, 65536, 65537, 262143, 262144, 262145, 300000, 524288,
    1048575, 1048576, 1048577, 3000000,
]  # fmt: skip


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_kernel_agrees_with_the_reference(lanes: int) -> None:
    if lanes > ext4.blake3_lanes():
        with pytest.raises(ValueError, match="no BLAKE3 kernel"):
            ext4.blake3_digest(b"", lanes)
        return
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        assert ext4.blake3_digest(data, lanes) == blake3(data).digest(), size


@pytest.mark.parametrize("lanes", [3, 5, 32])
def test_no_other_number_of_lanes(lanes: int) -> None:
    with pytest.raises(ValueError, match="no BLAKE3 kernel"):
        ext4.blake3_digest(b"x", lanes)


def test_known_answer_of_the_specification() -> None:
    # test_vectors.json of the specification: the input is 0, 1, … 250, 0, 1, …
    data = bytes(i % 251 for i in range(1025))
    expected = "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"
    assert ext4.blake3_digest(data).hex() == expected


@given(st.lists(st.integers(0, 65536) | st.integers(0, 3000), max_size=60), st.randoms())
def test_many_small_messages_at_once(sizes: list[int], source: random.Random) -> None:
    messages = [source.randbytes(size) for size in sizes]
    assert ext4.blake3_digests(messages) == [blake3(message).digest() for message in messages]


def test_all_sizes_to_three_chunks() -> None:
    data = os.urandom(3 * 1024)
    messages = [data[:size] for size in range(len(data) + 1)]
    assert ext4.blake3_digests(messages) == [blake3(message).digest() for message in messages]
