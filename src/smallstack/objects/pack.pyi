"""Types of the glue over csrc/object_pack.h, csrc/object_digests.h and csrc/sha512.h."""

from typing import Generic, TypeVar

from typing_extensions import Buffer

T = TypeVar("T")
S = TypeVar("S", bound=tuple[bytes, int, bytes, bool, int, int, bytes])
Part = tuple[bytes, Buffer, int, int]

def check(objects: list[Part]) -> tuple[int, list[bytes]]: ...
def enter(
    fd: int, offset: int, objects: list[Part], number: int, kind: type[S]
) -> tuple[int, list[S], int, int]: ...
def split(
    objects: list[tuple[bytes, int]],
    first: int,
    buffer: Buffer,
    at: int,
    most: int,
    whole: list[Part],
) -> tuple[int, int]: ...
def total(objects: list[Part]) -> tuple[int, int]: ...

class Digests(Generic[T]):
    reading: int
    @property
    def full(self) -> bool: ...
    def add(self, fd: int, size: int, owner: T) -> None: ...
    def read(self, passes: int) -> list[tuple[T, bytes, bytes, bytes, int]]: ...

def sha512_lanes() -> int: ...
def sha512_many(messages: list[bytes], lanes: int = 0) -> list[bytes]: ...
