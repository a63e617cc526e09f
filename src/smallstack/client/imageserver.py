"""The client of the ImageServer service: images by name, in directories."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final

from smallstack.client.errors import ServiceError
from smallstack.client.service import ServiceClient
from smallstack.proto import imageserver as proto
from smallstack.proto.filesystem import ComputedFile
from smallstack.proto.image import Directory, Image
from smallstack.proto.kinds import Time
from smallstack.srpc.connection import Connection

NEVER: Final = Time()


class ImageServerClient(ServiceClient):
    """Several of these methods have no error in their reply: their failures are CallError."""

    service = "ImageServer"

    async def add_image(self, name: str, image: Image) -> None:
        """Add an image; all its objects must be on the server already."""
        request = proto.AddImageRequest(image_name=name, image=image)
        await self.large("AddImage", request, proto.AddImageResponse)

    async def add_image_trusted(self, name: str, image: Image) -> None:
        """As `add_image`, with what the image says of who made it and when."""
        request = proto.AddImageRequest(image_name=name, image=image)
        await self.large("AddImageTrusted", request, proto.AddImageResponse)

    async def check_image(self, name: str) -> bool:
        """Whether there is an image of this name."""
        request = proto.CheckImageRequest(image_name=name)
        return (await self.call("CheckImage", request, proto.CheckImageResponse)).image_exists

    async def get_image(
        self, name: str, timeout: int = 0, *, ignore_filesystem: bool = False
    ) -> Image | None:
        """The image, waited for at most ``timeout`` ns; None when there is none.

        ``ignore_filesystem`` leaves its tree of inodes out.
        """
        request = proto.GetImageRequest(
            image_name=name, timeout=timeout, ignore_filesystem=ignore_filesystem
        )
        return (await self.large("GetImage", request, proto.GetImageResponse)).image

    async def find_latest_image(
        self,
        directory: str,
        *,
        build_commit_id: str = "",
        ignore_expiring: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> str:
        """The name of the newest image right in a directory, "" when there is none."""
        request = proto.FindLatestImageRequest(
            directory_name=directory,
            build_commit_id=build_commit_id,
            ignore_expiring_images=ignore_expiring,
            tags_to_match={key: list(values) for key, values in (tags or {}).items()},
        )
        reply = await self.call("FindLatestImage", request, proto.FindLatestImageResponse)
        if reply.error:
            raise ServiceError(text=reply.error)
        return reply.image_name

    async def check_directory(self, name: str) -> bool:
        """Whether there is a directory of this name."""
        request = proto.CheckDirectoryRequest(directory_name=name)
        reply = await self.call("CheckDirectory", request, proto.CheckDirectoryResponse)
        return reply.directory_exists

    async def list_images(self) -> list[str]:
        """The names of all images."""
        async with self.client.raw("ImageServer.ListImages") as conn:
            return await _names(conn)

    async def list_selected_images(
        self,
        directory: str = "",
        *,
        ignore_expiring: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> list[str]:
        """The names of the images in a directory that have one of the values of every tag."""
        async with self.client.raw("ImageServer.ListSelectedImages") as conn:
            conn.encode(
                proto.ListSelectedImagesRequest(
                    directory_name=directory,
                    ignore_expiring_images=ignore_expiring,
                    tags_to_match={key: list(values) for key, values in (tags or {}).items()},
                )
            )
            await conn.flush()
            return await _names(conn)

    async def follow_images(
        self, *, ignore_expiring: bool = False
    ) -> AsyncGenerator[proto.ImageUpdate, None]:
        """Every directory and image, an update without a name, then what changes, for ever.

        ``ignore_expiring`` leaves images out that go by themselves.
        Raises ConnectionClosedError when the server ends.
        """
        async with self.client.raw("ImageServer.GetFilteredImageUpdates") as conn:
            conn.encode(proto.GetFilteredImageUpdatesRequest(ignore_expiring=ignore_expiring))
            await conn.flush()
            while True:
                yield await conn.decode(proto.ImageUpdate, idle=True)

    async def get_image_archive(self, name: str) -> bytes:
        """An image without its objects, as bytes that this server takes back."""
        request = proto.GetImageArchiveRequest(image_name=name)
        reply = await self.large("GetImageArchive", request, proto.GetImageArchiveResponse)
        return self.check(reply).archive_data

    async def restore_image(self, archive: bytes, expires_at: Time = NEVER) -> None:
        """Add the image of an archive; one that expired lives until ``expires_at``."""
        request = proto.RestoreImageFromArchiveRequest(archive_data=archive, expires_at=expires_at)
        response = proto.RestoreImageFromArchiveResponse
        self.check(await self.large("RestoreImageFromArchive", request, response))

    async def import_tree(
        self, directory: str, url: str, expires_at: Time = NEVER
    ) -> proto.ImportTreeResponse:
        """Have the server make an image of a tree that a web server has by digest."""
        request = proto.ImportTreeRequest(
            directory_name=directory, tree_url=url, expires_at=expires_at
        )
        return await self.checked("ImportTree", request, proto.ImportTreeResponse)

    async def list_directories(self) -> list[Directory]:
        """All directories."""
        found = []
        async with self.client.raw("ImageServer.ListDirectories") as conn:
            while (directory := await conn.decode(Directory)).name:
                found.append(directory)
        return found

    async def make_directory(self, name: str, make_all: bool = False) -> None:
        """Make a directory; ``make_all`` makes those above it too."""
        request = proto.MakeDirectoryRequest(directory_name=name, make_all=make_all)
        await self.call("MakeDirectory", request, proto.MakeDirectoryResponse)

    async def chown_directory(self, name: str, owner_group: str) -> None:
        """Have the members of a group own a directory and what is in it."""
        request = proto.ChangeOwnerRequest(directory_name=name, owner_group=owner_group)
        await self.call("ChownDirectory", request, proto.ChangeOwnerResponse)

    async def delete_directory(self, name: str) -> None:
        """Delete an empty directory."""
        request = proto.DeleteDirectoryRequest(directory_name=name)
        await self.checked("DeleteDirectory", request, proto.DeleteDirectoryResponse)

    async def get_image_computed_files(self, name: str) -> list[ComputedFile] | None:
        """The files of an image that each machine gets elsewhere; None when there is no image."""
        request = proto.GetImageComputedFilesRequest(image_name=name)
        method = "GetImageComputedFiles"
        reply = await self.call(method, request, proto.GetImageComputedFilesResponse)
        return reply.computed_files if reply.image_exists else None

    async def get_image_inodes(
        self, name: str, filenames: Sequence[str]
    ) -> proto.GetImageInodesResponse:
        """The inodes of some files of an image; files that it has not are left out."""
        request = proto.GetImageInodesRequest(image_name=name, filenames=list(filenames))
        return await self.checked("GetImageInodes", request, proto.GetImageInodesResponse)

    async def get_replication_master(self) -> str:
        """The server whose images this one has too, ``host:port``; "" for none."""
        request = proto.GetReplicationMasterRequest()
        method = "GetReplicationMaster"
        return (
            await self.checked(method, request, proto.GetReplicationMasterResponse)
        ).replication_master

    async def delete_image(self, name: str) -> None:
        """Delete an image; its name can never be used again."""
        request = proto.DeleteImageRequest(image_name=name)
        await self.call("DeleteImage", request, proto.DeleteImageResponse)

    async def get_image_expiration(self, name: str) -> Time:
        """When an image expires; the zero time for never."""
        request = proto.GetImageExpirationRequest(image_name=name)
        reply = await self.call("GetImageExpiration", request, proto.GetImageExpirationResponse)
        if reply.error:
            raise ServiceError(text=reply.error)
        return reply.expires_at

    async def change_image_expiration(self, name: str, expires_at: Time) -> None:
        """Let an image live until then; the zero time for ever."""
        request = proto.ChangeImageExpirationRequest(image_name=name, expires_at=expires_at)
        method = "ChangeImageExpiration"
        reply = await self.call(method, request, proto.ChangeImageExpirationResponse)
        if reply.error:
            raise ServiceError(text=reply.error)

    async def get_object_statistics(
        self, names: Sequence[str], *, ignore_missing: bool = False
    ) -> proto.GetObjectStatisticsForImagesResponse:
        """What some images take, together."""
        request = proto.GetObjectStatisticsForImagesRequest(
            image_names=list(names), ignore_missing=ignore_missing
        )
        method = "GetObjectStatisticsForImages"
        reply = await self.call(method, request, proto.GetObjectStatisticsForImagesResponse)
        if reply.error:
            raise ServiceError(text=reply.error)
        return reply

    async def list_unreferenced_objects(self) -> list[proto.Object]:
        """The objects that no image needs."""
        found = []
        async with self.client.raw("ImageServer.ListUnreferencedObjects") as conn:
            while (one := await conn.decode(proto.Object)).size:
                found.append(one)
        return found

    async def delete_unreferenced_objects(self, percentage: int, bytes_: int) -> None:
        """Delete them until so many per cent, and so many bytes, are gone."""
        request = proto.DeleteUnreferencedObjectsRequest(percentage=percentage, bytes=bytes_)
        method = "DeleteUnreferencedObjects"
        await self.call(method, request, proto.DeleteUnreferencedObjectsResponse)

    async def get_image_usage_estimate(self, name: str) -> int | None:
        """Bytes that an image is thought to take on disk; None when there is none of that name."""
        request = proto.GetImageUsageEstimateRequest(image_name=name)
        method = "GetImageUsageEstimate"
        reply = await self.call(method, request, proto.GetImageUsageEstimateResponse)
        return reply.usage_estimate if reply.image_exists else None


async def _names(conn: Connection) -> list[str]:
    """Lines up to an empty one."""
    names = []
    while name := await conn.read_line():
        names.append(name.decode(errors="replace"))
    return names
