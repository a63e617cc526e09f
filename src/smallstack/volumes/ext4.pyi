"""Types of the ext4 glue."""

from collections.abc import Callable

from typing_extensions import Buffer

from smallstack.proto.filesystem import FileSystem
from smallstack.volumes.layout import Layout

def write_root(
    fd: int,
    fs: FileSystem,
    object_directory: int,
    *,
    facts: Callable[[bytes], tuple[bytes, int, int]] | None,
    size: int,
    offset: int = 0,
    uuid: bytes,
    label: bytes = b"",
    time: int = 0,
    bytes_per_inode: int = 8192,
    reserved_percent: int = 5,
    path: str = "",
) -> Layout: ...
def blake3_lanes() -> int: ...
def blake3_digest(data: Buffer, lanes: int = 0) -> bytes: ...
def blake3_digests(messages: list[bytes]) -> list[bytes]: ...
def directory_hash(seed: bytes, name: bytes) -> int: ...
