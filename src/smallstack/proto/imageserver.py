"""Messages of the ImageServer service, in the order of their wire fields."""

# ruff: noqa: RUF012 - msgspec copies an empty list or dict for each instance

from enum import IntEnum
from typing import ClassVar

from msgspec import field

from smallstack.proto.filesystem import ComputedFile, Filename, GenericInode, InodeNumber
from smallstack.proto.image import Directory, Image
from smallstack.proto.kinds import (
    Duration,
    Embedded,
    Hash,
    MatchTags,
    Message,
    Time,
    Uint,
    Uint8,
    Uint64,
)


class ImageServerMessage(Message, kw_only=True):
    """A message or record of the ImageServer service."""

    go_package: ClassVar[str] = "imageserver"


class AddImageRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.AddImage``."""

    image_name: str = ""
    image: Image | None = None


class AddImageResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.AddImage``."""


class ChangeImageExpirationRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.ChangeImageExpiration``."""

    expires_at: Time = Time()
    image_name: str = ""


class ChangeImageExpirationResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.ChangeImageExpiration``."""

    error: str = ""


class ChangeOwnerRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.ChownDirectory``."""

    directory_name: str = ""
    owner_group: str = ""


class ChangeOwnerResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.ChownDirectory``: empty."""


class CheckDirectoryRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.CheckDirectory``."""

    directory_name: str = ""


class CheckDirectoryResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.CheckDirectory``."""

    directory_exists: bool = False


class CheckImageRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.CheckImage``."""

    image_name: str = ""


class CheckImageResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.CheckImage``."""

    image_exists: bool = False


class DeleteDirectoryRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.DeleteDirectory``."""

    directory_name: str = ""


class DeleteDirectoryResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.DeleteDirectory``."""

    error: str = ""


class DeleteImageRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.DeleteImage``."""

    image_name: str = ""


class DeleteImageResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.DeleteImage``."""


class DeleteUnreferencedObjectsRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.DeleteUnreferencedObjects``."""

    percentage: Uint8 = 0
    bytes: Uint64 = 0


class DeleteUnreferencedObjectsResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.DeleteUnreferencedObjects``."""


class FindLatestImageRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.FindLatestImage``: the newest image right in a directory."""

    build_commit_id: str = ""
    directory_name: str = ""
    ignore_expiring_images: bool = False
    tags_to_match: MatchTags = {}


class FindLatestImageResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.FindLatestImage``; an empty name when there is none."""

    image_name: str = ""
    error: str = ""


class GetImageArchiveRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImageArchive``."""

    image_name: str = ""


class GetImageArchiveResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImageArchive``."""

    archive_data: bytes = b""
    error: str = ""
    replication_master: str = ""


class GetImageComputedFilesRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImageComputedFiles``."""

    image_name: str = ""


class GetImageComputedFilesResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImageComputedFiles``."""

    computed_files: list[ComputedFile] = []
    image_exists: bool = False


class GetImageExpirationRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImageExpiration``."""

    image_name: str = ""


class GetImageExpirationResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImageExpiration``."""

    error: str = ""
    expires_at: Time = Time()


class GetImageInodesRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImageInodes``."""

    filenames: list[Filename] = []
    image_name: str = ""


class GetImageInodesResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImageInodes``."""

    error: str = ""
    image_exists: bool = False
    inode_numbers: dict[Filename, InodeNumber] = {}
    """Of each file."""
    inodes: dict[InodeNumber, GenericInode] = {}
    num_links: dict[InodeNumber, Uint] = {}
    """Names that each inode has."""


class GetImageRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImage``; ``timeout`` (ns) is how long to wait for the image."""

    image_name: str = ""
    ignore_filesystem: bool = False
    ignore_filesystem_if_expiring: bool = False
    timeout: Duration = 0


class GetImageResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImage``; no image when there is none of that name."""

    image: Image | None = None
    information_database_url: str = ""


class GetImageUsageEstimateRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetImageUsageEstimate``."""

    image_name: str = ""


class GetImageUsageEstimateResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetImageUsageEstimate``."""

    image_exists: bool = False
    usage_estimate: Uint64 = 0
    """Bytes on disk."""


class GetFilteredImageUpdatesRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetFilteredImageUpdates``."""

    ignore_expiring: bool = False


class GetObjectStatisticsForImagesRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetObjectStatisticsForImages``."""

    ignore_missing: bool = False
    image_names: list[str] = []


class GetObjectStatisticsForImagesResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetObjectStatisticsForImages``; sizes in bytes, times in ns.

    What is exclusive (needed by no other image) and what is stored on disk are ours alone.
    """

    computation_time: Duration = 0
    error: str = ""
    exclusive_objects: Uint64 = 0
    exclusive_object_bytes: Uint64 = 0
    num_file_inodes: Uint64 = 0
    num_images: Uint = 0
    num_objects: Uint64 = 0
    stored_object_bytes: Uint64 = 0
    total_file_inode_bytes: Uint64 = 0
    total_object_bytes: Uint64 = 0


class GetReplicationMasterRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.GetReplicationMaster``."""


class GetReplicationMasterResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.GetReplicationMaster``."""

    error: str = ""
    replication_master: str = ""


class ImageArchive(ImageServerMessage, kw_only=True):
    """An image with its name, as archives hold it; a keyed digest follows it there."""

    image_name: str = ""
    image: Embedded[Image] = field(default_factory=Image)


class ImageUpdate(ImageServerMessage, kw_only=True):
    """One message of ``ImageServer.GetImageUpdates``; an empty name ends the first list."""

    name: str = ""
    directory: Directory | None = None
    operation: Uint = 0
    """0: image added, 1: image deleted, 2: directory made, 3: directory deleted."""


class ImportTreeRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.ImportTree``."""

    directory_name: str = ""
    expires_at: Time = Time()
    tree_url: str = ""


class ImportTreeResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.ImportTree``."""

    file_bytes_added: Uint64 = 0
    file_objects_added: Uint64 = 0
    files_download_time: Duration = 0
    error: str = ""
    image_name: str = ""
    tree_bytes_added: Uint64 = 0
    tree_objects_added: Uint64 = 0
    trees_download_time: Duration = 0


class ListSelectedImagesRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.ListSelectedImages``."""

    directory_name: str = ""
    ignore_expiring_images: bool = False
    tags_to_match: MatchTags = {}


class Object(ImageServerMessage, kw_only=True):
    """One message of ``ImageServer.ListUnreferencedObjects``; size 0 ends the list."""

    hash: Hash = Hash.zero
    size: Uint64 = 0


class MakeDirectoryRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.MakeDirectory``."""

    directory_name: str = ""
    make_all: bool = False


class MakeDirectoryResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.MakeDirectory``."""


class RestoreImageFromArchiveRequest(ImageServerMessage, kw_only=True):
    """Request of ``ImageServer.RestoreImageFromArchive``."""

    expires_at: Time = Time()
    archive_data: bytes = b""


class RestoreImageFromArchiveResponse(ImageServerMessage, kw_only=True):
    """Reply of ``ImageServer.RestoreImageFromArchive``."""

    error: str = ""
    replication_master: str = ""


class ImageOperation(IntEnum):
    """Values of ``ImageUpdate.operation``."""

    ADD_IMAGE = 0
    DELETE_IMAGE = 1
    MAKE_DIRECTORY = 2
    DELETE_DIRECTORY = 3
