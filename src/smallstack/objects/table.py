"""A dict by digest that never takes long for one entry.

A dict that grows is copied whole from time to time: at 100,000 entries that takes 5 ms. This is one
of many small ones, by the first byte of the digest, which grow at different moments.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Final, TypeVar

V = TypeVar("V")
SHARDS: Final = 256


class Table(MutableMapping[bytes, V]):
    """Keys are digests. One thread changes it; others may look things up and iterate meanwhile.

    An iteration shows what each part held when it came to it.
    """

    __slots__ = ("_shards",)

    def __init__(self, entries: Mapping[bytes, V] | None = None) -> None:
        self._shards: list[dict[bytes, V]] = [{} for _ in range(SHARDS)]
        if entries is not None:
            for key, value in entries.items():
                self._shards[key[0]][key] = value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and key in self._shards[key[0]]

    def __getitem__(self, key: bytes) -> V:
        return self._shards[key[0]][key]

    def __setitem__(self, key: bytes, value: V) -> None:
        self._shards[key[0]][key] = value

    def __delitem__(self, key: bytes) -> None:
        del self._shards[key[0]][key]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __iter__(self) -> Iterator[bytes]:
        for shard in self._shards:
            yield from list(shard)

    def take(self, key: bytes) -> V:
        """Remove an entry and return its value; raises KeyError."""
        return self._shards[key[0]].pop(key)

    def find(self, key: bytes) -> V | None:
        """The value of a key, None when there is none."""
        return self._shards[key[0]].get(key)
