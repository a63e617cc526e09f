"""Messages of the ObjectServer service, in the order of their wire fields."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import ClassVar

from smallstack.proto.kinds import Duration, Hash, Message, Uint, Uint64


class AddObjectRequest(Message, kw_only=True):
    """One object of ``ObjectServer.AddObjects``: its ``length`` bytes follow; length 0 ends."""

    go_package: ClassVar[str] = "objectserver"
    length: Uint64 = 0
    expected_hash: Hash | None = None


class AddObjectResponse(Message, kw_only=True):
    """Reply to one object of ``ObjectServer.AddObjects``; ``added`` is False if it was there."""

    go_package: ClassVar[str] = "objectserver"
    error_string: str = ""
    hash: Hash = Hash.zero
    added: bool = False


class CheckObjectsRequest(Message, kw_only=True):
    """Request of ``ObjectServer.CheckObjects``."""

    go_package: ClassVar[str] = "objectserver"
    hashes: list[Hash] = []


class CheckObjectsResponse(Message, kw_only=True):
    """Reply of ``ObjectServer.CheckObjects``: sizes in bytes, 0 = missing."""

    go_package: ClassVar[str] = "objectserver"
    object_sizes: list[Uint64] = []


class GetObjectsRequest(Message, kw_only=True):
    """Request of ``ObjectServer.GetObjects``."""

    go_package: ClassVar[str] = "objectserver"
    exclusive: bool = False
    hashes: list[Hash] = []


class GetObjectsResponse(Message, kw_only=True):
    """Reply of ``ObjectServer.GetObjects``: empty text = success; the objects' bytes follow."""

    go_package: ClassVar[str] = "objectserver"
    response_string: str = ""
    object_sizes: list[Uint64] = []


class ImportObjectsRequest(Message, kw_only=True):
    """Request of ``ObjectServer.ImportObjects``."""

    go_package: ClassVar[str] = "objectserver"
    base_remote_url: str = ""
    hashes: list[Hash] = []
    object_sizes: list[Uint64] = []


class ImportObjectsResponse(Message, kw_only=True):
    """Reply of ``ObjectServer.ImportObjects``."""

    go_package: ClassVar[str] = "objectserver"
    bytes_added: Uint64 = 0
    error: str = ""
    failed_index: Uint = 0
    objects_added: Uint64 = 0


class TestBandwidthRequest(Message, kw_only=True):
    """Request of ``ObjectServer.TestBandwidth``; ``duration`` in ns, chunks up to 65535 bytes."""

    go_package: ClassVar[str] = "objectserver"
    duration: Duration = 0
    chunk_size: Uint = 0
    send_to_server: bool = False


class TestBandwidthResponse(Message, kw_only=True):
    """Reply of ``ObjectServer.TestBandwidth``."""

    go_package: ClassVar[str] = "objectserver"
    server_duration: Duration = 0
