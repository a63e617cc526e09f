"""Messages of the ObjectServer service, in the order of their wire fields."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from typing import ClassVar

from smallstack.proto.kinds import Duration, Hash, Message, Uint, Uint64


class ObjectServerMessage(Message, kw_only=True):
    """A message or record of the ObjectServer service."""

    go_package: ClassVar[str] = "objectserver"


class AddObjectRequest(ObjectServerMessage, kw_only=True):
    """One object of ``ObjectServer.AddObjects``: its ``length`` bytes follow; length 0 ends."""

    length: Uint64 = 0
    expected_hash: Hash | None = None


class AddObjectResponse(ObjectServerMessage, kw_only=True):
    """Reply to one object of ``ObjectServer.AddObjects``; ``added`` is False if it was there."""

    error_string: str = ""
    hash: Hash = Hash.zero
    added: bool = False


class CheckObjectsRequest(ObjectServerMessage, kw_only=True):
    """Request of ``ObjectServer.CheckObjects``."""

    hashes: list[Hash] = []


class CheckObjectsResponse(ObjectServerMessage, kw_only=True):
    """Reply of ``ObjectServer.CheckObjects``: sizes in bytes, 0 = missing."""

    object_sizes: list[Uint64] = []


class GetObjectsRequest(ObjectServerMessage, kw_only=True):
    """Request of ``ObjectServer.GetObjects``."""

    exclusive: bool = False
    hashes: list[Hash] = []


class GetObjectsResponse(ObjectServerMessage, kw_only=True):
    """Reply of ``ObjectServer.GetObjects``: empty text = success; the objects' bytes follow."""

    response_string: str = ""
    object_sizes: list[Uint64] = []


class GetCompressedObjectsRequest(GetObjectsRequest, kw_only=True):
    """Request of ``ObjectServer.GetCompressedObjects``, a method of this project only."""


class GetCompressedObjectsResponse(GetObjectsResponse, kw_only=True):
    """Reply of it: the objects' bytes follow in frames, see `smallstack.objects.packed`."""


class ImportObjectsRequest(ObjectServerMessage, kw_only=True):
    """Request of ``ObjectServer.ImportObjects``."""

    base_remote_url: str = ""
    hashes: list[Hash] = []
    object_sizes: list[Uint64] = []


class ImportObjectsResponse(ObjectServerMessage, kw_only=True):
    """Reply of ``ObjectServer.ImportObjects``."""

    bytes_added: Uint64 = 0
    error: str = ""
    failed_index: Uint = 0
    objects_added: Uint64 = 0


class TestBandwidthRequest(ObjectServerMessage, kw_only=True):
    """Request of ``ObjectServer.TestBandwidth``; ``duration`` in ns, chunks up to 65535 bytes."""

    duration: Duration = 0
    chunk_size: Uint = 0
    send_to_server: bool = False


class TestBandwidthResponse(ObjectServerMessage, kw_only=True):
    """Reply of ``ObjectServer.TestBandwidth``."""

    server_duration: Duration = 0
