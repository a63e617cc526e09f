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


class AddImageRequest(Message, kw_only=True):
    """Request of ``ImageServer.AddImage``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""
    image: Image | None = None


class AddImageResponse(Message, kw_only=True):
    """Reply of ``ImageServer.AddImage``."""

    go_package: ClassVar[str] = "imageserver"


class ChangeImageExpirationRequest(Message, kw_only=True):
    """Request of ``ImageServer.ChangeImageExpiration``."""

    go_package: ClassVar[str] = "imageserver"
    expires_at: Time = Time()
    image_name: str = ""


class ChangeImageExpirationResponse(Message, kw_only=True):
    """Reply of ``ImageServer.ChangeImageExpiration``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""


class ChangeOwnerRequest(Message, kw_only=True):
    """Request of ``ImageServer.ChownDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""
    owner_group: str = ""


class ChangeOwnerResponse(Message, kw_only=True):
    """Reply of ``ImageServer.ChownDirectory``: empty."""

    go_package: ClassVar[str] = "imageserver"


class CheckDirectoryRequest(Message, kw_only=True):
    """Request of ``ImageServer.CheckDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""


class CheckDirectoryResponse(Message, kw_only=True):
    """Reply of ``ImageServer.CheckDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    directory_exists: bool = False


class CheckImageRequest(Message, kw_only=True):
    """Request of ``ImageServer.CheckImage``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class CheckImageResponse(Message, kw_only=True):
    """Reply of ``ImageServer.CheckImage``."""

    go_package: ClassVar[str] = "imageserver"
    image_exists: bool = False


class DeleteDirectoryRequest(Message, kw_only=True):
    """Request of ``ImageServer.DeleteDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""


class DeleteDirectoryResponse(Message, kw_only=True):
    """Reply of ``ImageServer.DeleteDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""


class DeleteImageRequest(Message, kw_only=True):
    """Request of ``ImageServer.DeleteImage``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class DeleteImageResponse(Message, kw_only=True):
    """Reply of ``ImageServer.DeleteImage``."""

    go_package: ClassVar[str] = "imageserver"


class DeleteUnreferencedObjectsRequest(Message, kw_only=True):
    """Request of ``ImageServer.DeleteUnreferencedObjects``."""

    go_package: ClassVar[str] = "imageserver"
    percentage: Uint8 = 0
    bytes: Uint64 = 0


class DeleteUnreferencedObjectsResponse(Message, kw_only=True):
    """Reply of ``ImageServer.DeleteUnreferencedObjects``."""

    go_package: ClassVar[str] = "imageserver"


class FindLatestImageRequest(Message, kw_only=True):
    """Request of ``ImageServer.FindLatestImage``: the newest image right in a directory."""

    go_package: ClassVar[str] = "imageserver"
    build_commit_id: str = ""
    directory_name: str = ""
    ignore_expiring_images: bool = False
    tags_to_match: MatchTags = {}


class FindLatestImageResponse(Message, kw_only=True):
    """Reply of ``ImageServer.FindLatestImage``; an empty name when there is none."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""
    error: str = ""


class GetImageArchiveRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImageArchive``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class GetImageArchiveResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImageArchive``."""

    go_package: ClassVar[str] = "imageserver"
    archive_data: bytes = b""
    error: str = ""
    replication_master: str = ""


class GetImageComputedFilesRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImageComputedFiles``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class GetImageComputedFilesResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImageComputedFiles``."""

    go_package: ClassVar[str] = "imageserver"
    computed_files: list[ComputedFile] = []
    image_exists: bool = False


class GetImageExpirationRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImageExpiration``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class GetImageExpirationResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImageExpiration``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""
    expires_at: Time = Time()


class GetImageInodesRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImageInodes``."""

    go_package: ClassVar[str] = "imageserver"
    filenames: list[Filename] = []
    image_name: str = ""


class GetImageInodesResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImageInodes``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""
    image_exists: bool = False
    inode_numbers: dict[Filename, InodeNumber] = {}
    inodes: dict[InodeNumber, GenericInode] = {}
    num_links: dict[InodeNumber, Uint] = {}


class GetImageRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImage``; ``timeout`` (ns) is how long to wait for the image."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""
    ignore_filesystem: bool = False
    ignore_filesystem_if_expiring: bool = False
    timeout: Duration = 0


class GetImageResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImage``; no image when there is none of that name."""

    go_package: ClassVar[str] = "imageserver"
    image: Image | None = None
    information_database_url: str = ""


class GetImageUsageEstimateRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetImageUsageEstimate``."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""


class GetImageUsageEstimateResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetImageUsageEstimate``."""

    go_package: ClassVar[str] = "imageserver"
    image_exists: bool = False
    usage_estimate: Uint64 = 0


class GetFilteredImageUpdatesRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetFilteredImageUpdates``."""

    go_package: ClassVar[str] = "imageserver"
    ignore_expiring: bool = False


class GetObjectStatisticsForImagesRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetObjectStatisticsForImages``."""

    go_package: ClassVar[str] = "imageserver"
    ignore_missing: bool = False
    image_names: list[str] = []


class GetObjectStatisticsForImagesResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetObjectStatisticsForImages``."""

    go_package: ClassVar[str] = "imageserver"
    computation_time: Duration = 0
    error: str = ""
    num_file_inodes: Uint64 = 0
    num_images: Uint = 0
    num_objects: Uint64 = 0
    total_file_inode_bytes: Uint64 = 0
    total_object_bytes: Uint64 = 0


class GetReplicationMasterRequest(Message, kw_only=True):
    """Request of ``ImageServer.GetReplicationMaster``."""

    go_package: ClassVar[str] = "imageserver"


class GetReplicationMasterResponse(Message, kw_only=True):
    """Reply of ``ImageServer.GetReplicationMaster``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""
    replication_master: str = ""


class ImageArchive(Message, kw_only=True):
    """An image with its name, as archives hold it; a keyed digest follows it there."""

    go_package: ClassVar[str] = "imageserver"
    image_name: str = ""
    image: Embedded[Image] = field(default_factory=Image)


class ImageUpdate(Message, kw_only=True):
    """One message of ``ImageServer.GetImageUpdates``; an empty name ends the first list."""

    go_package: ClassVar[str] = "imageserver"
    name: str = ""
    directory: Directory | None = None
    operation: Uint = 0


class ImportTreeRequest(Message, kw_only=True):
    """Request of ``ImageServer.ImportTree``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""
    expires_at: Time = Time()
    tree_url: str = ""


class ImportTreeResponse(Message, kw_only=True):
    """Reply of ``ImageServer.ImportTree``."""

    go_package: ClassVar[str] = "imageserver"
    file_bytes_added: Uint64 = 0
    file_objects_added: Uint64 = 0
    files_download_time: Duration = 0
    error: str = ""
    image_name: str = ""
    tree_bytes_added: Uint64 = 0
    tree_objects_added: Uint64 = 0
    trees_download_time: Duration = 0


class ListSelectedImagesRequest(Message, kw_only=True):
    """Request of ``ImageServer.ListSelectedImages``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""
    ignore_expiring_images: bool = False
    tags_to_match: MatchTags = {}


class Object(Message, kw_only=True):
    """One message of ``ImageServer.ListUnreferencedObjects``; size 0 ends the list."""

    go_package: ClassVar[str] = "imageserver"
    hash: Hash = Hash.zero
    size: Uint64 = 0


class MakeDirectoryRequest(Message, kw_only=True):
    """Request of ``ImageServer.MakeDirectory``."""

    go_package: ClassVar[str] = "imageserver"
    directory_name: str = ""
    make_all: bool = False


class MakeDirectoryResponse(Message, kw_only=True):
    """Reply of ``ImageServer.MakeDirectory``."""

    go_package: ClassVar[str] = "imageserver"


class RestoreImageFromArchiveRequest(Message, kw_only=True):
    """Request of ``ImageServer.RestoreImageFromArchive``."""

    go_package: ClassVar[str] = "imageserver"
    expires_at: Time = Time()
    archive_data: bytes = b""


class RestoreImageFromArchiveResponse(Message, kw_only=True):
    """Reply of ``ImageServer.RestoreImageFromArchive``."""

    go_package: ClassVar[str] = "imageserver"
    error: str = ""
    replication_master: str = ""


class ImageOperation(IntEnum):
    """Values of ``ImageUpdate.operation``."""

    ADD_IMAGE = 0
    DELETE_IMAGE = 1
    MAKE_DIRECTORY = 2
    DELETE_DIRECTORY = 3
