"""Where objects come from: what the cache asks of a peer."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class ObjectStream(Protocol):
    """Objects on their way: first all sizes, then their bytes one object after another."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each object, in the order asked for."""

    async def read(self, limit: int) -> bytes:
        """The next bytes as they come, at most ``limit``; b"" when the peer closed."""


class ObjectSource(Protocol):
    """A peer that has objects."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def open_objects(self, hashes: Sequence[bytes]) -> AbstractAsyncContextManager[ObjectStream]:
        """Ask for objects, all of which must be there.

        Raises ObjectMissingError when one is not, FetchError when the peer cannot be reached,
        goes away, or sends what is not valid; so does ``read``.
        """
