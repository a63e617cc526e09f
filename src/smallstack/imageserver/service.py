"""The ImageServer service: images by name over one catalogue, one store of objects.

An image is added only when all its objects are there and on disk, and as long as it is in the
catalogue none of them goes. The texts of refusals are upstream's.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from smallstack.images.catalogue import ImageCatalogue
from smallstack.images.computed import computed_files, repeated_computed_file
from smallstack.images.errors import RefusedError
from smallstack.images.inodes import find_inodes
from smallstack.images.model import object_of_two_sizes
from smallstack.images.names import check_directory
from smallstack.imageserver import rights
from smallstack.imageserver.references import References, objects_of
from smallstack.imageserver.usage import statistics
from smallstack.objects.store import ObjectStore
from smallstack.proto import imageserver as proto
from smallstack.proto.image import Directory, Image
from smallstack.proto.kinds import Message, Time
from smallstack.proto.methods import METHODS, Method, Shape
from smallstack.srpc import framing
from smallstack.srpc.coder import IMAGE
from smallstack.srpc.errors import ConnectionClosedError, PeerStalledError, RemoteProtocolError
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError

T = TypeVar("T", bound=Message)
_LARGE: Final = (
    "AddImage",
    "AddImageTrusted",
    "GetImage",
    "GetImageArchive",
    "RestoreImageFromArchive",
)
"""Methods whose messages hold whole trees: coded in threads, with larger bounds."""
_LISTED: Final = 64
"""Values of a long list that are encoded at a stretch."""
_log = logging.getLogger("smallstack.imageserver")


def methods(public: frozenset[str] = frozenset()) -> dict[str, Method]:
    """The method table as this server serves it; ``public`` names methods to be public as well."""
    table = dict(METHODS)
    for name in _LARGE:
        full = f"ImageServer.{name}"
        table[full] = replace(table[full], shape=Shape.RAW)
    for full, method in table.items():
        if method.power in public:
            table[full] = replace(method, public=True)
    return table


class ImageService:
    """The service. `start` before, `close` after."""

    def __init__(
        self, catalogue: ImageCatalogue, store: ObjectStore, references: References
    ) -> None:
        """The catalogue is loaded, and the references count what it holds."""
        self.catalogue = catalogue
        self._store = store
        self._references = references
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._expiring: asyncio.Task[None] | None = None
        self._expiry_changed = asyncio.Event()

    def start(self) -> None:
        """Begin to remove images as they expire."""
        self._expiring = asyncio.create_task(self._expire())

    async def close(self) -> None:
        """Stop doing so."""
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait([self._expiring])

    def handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`, with `methods`."""
        return {
            "AddImage": large(proto.AddImageRequest, self.add_image),
            "AddImageTrusted": large(proto.AddImageRequest, self.add_image_trusted),
            "ChangeImageExpiration": self.change_image_expiration,
            "CheckDirectory": self.check_directory,
            "CheckImage": self.check_image,
            "ChownDirectory": self.chown_directory,
            "DeleteDirectory": self.delete_directory,
            "DeleteImage": self.delete_image,
            "DeleteUnreferencedObjects": self.delete_unreferenced_objects,
            "FindLatestImage": self.find_latest_image,
            "GetImage": large(proto.GetImageRequest, self.get_image),
            "GetImageComputedFiles": self.get_image_computed_files,
            "GetImageExpiration": self.get_image_expiration,
            "GetImageInodes": self.get_image_inodes,
            "GetImageUsageEstimate": self.get_image_usage_estimate,
            "GetObjectStatisticsForImages": self.get_object_statistics,
            "GetReplicationMaster": self.get_replication_master,
            "ListDirectories": self.list_directories,
            "ListImages": self.list_images,
            "ListSelectedImages": self.list_selected_images,
            "ListUnreferencedObjects": self.list_unreferenced_objects,
            "MakeDirectory": self.make_directory,
        }

    # Images.

    async def add_image(self, call: Call, request: proto.AddImageRequest) -> proto.AddImageResponse:
        """Add an image as the caller's, as of now."""
        if request.image is not None:
            request.image.created_by = call.peer.username
            request.image.created_on = Time.now()
        return await self.add_image_trusted(call, request)

    async def add_image_trusted(
        self, call: Call, request: proto.AddImageRequest
    ) -> proto.AddImageResponse:
        """Add an image whose maker and time are believed."""
        name, image = request.image_name, request.image
        if name in self.catalogue:
            raise RefusedError(text="image already exists")
        if image is None:
            raise RefusedError(text="nil image")
        if image.file_system is None:
            raise RefusedError(text="nil file-system")
        if not image.expires_at.is_zero() and has_passed(image.expires_at):
            raise RefusedError(text="image has already expired")
        rights.check_image(call.peer, self.catalogue, name, None)
        await asyncio.to_thread(self.put, name, image)
        _log.info("AddImage(%s) by %s", name, call.peer)
        self.appeared(name)
        return proto.AddImageResponse()

    async def delete_image(
        self, call: Call, request: proto.DeleteImageRequest
    ) -> proto.DeleteImageResponse:
        """Delete an image; its name stays taken."""
        name = request.image_name
        entry = self.catalogue.entry(name)
        if entry is None:
            raise RefusedError(text="image does not exist: check `imagetool list`")
        rights.check_image(call.peer, self.catalogue, name, entry)
        await asyncio.to_thread(self._delete, name)
        _log.info("DeleteImage(%s) by %s", name, call.peer)
        return proto.DeleteImageResponse()

    async def check_image(
        self, call: Call, request: proto.CheckImageRequest
    ) -> proto.CheckImageResponse:
        """Whether an image is there."""
        return proto.CheckImageResponse(image_exists=request.image_name in self.catalogue)

    async def get_image(self, call: Call, request: proto.GetImageRequest) -> proto.GetImageResponse:
        """An image, with or without its tree, waited for if the caller wants to."""
        if request.image_name not in self.catalogue and request.timeout > 0:
            await call.conn.while_connected(self._wait(request.image_name, request.timeout / 1e9))
        entry = self.catalogue.entry(request.image_name)
        if entry is None:
            return proto.GetImageResponse()
        if request.ignore_filesystem or (request.ignore_filesystem_if_expiring and entry.expires):
            return proto.GetImageResponse(image=entry.image)
        image = await asyncio.to_thread(self.catalogue.get, request.image_name)
        return proto.GetImageResponse(image=image)

    async def find_latest_image(
        self, call: Call, request: proto.FindLatestImageRequest
    ) -> proto.FindLatestImageResponse:
        """The newest image right in a directory."""
        try:
            name = self.catalogue.find_latest(
                request.directory_name,
                request.build_commit_id,
                request.ignore_expiring_images,
                request.tags_to_match,
            )
        except RefusedError as error:
            call.failed(error)
            return proto.FindLatestImageResponse(error=str(error))
        return proto.FindLatestImageResponse(image_name=name)

    async def list_images(self, call: Call) -> None:
        """Every name, a line each."""
        _write_lines(call, self.catalogue.names())

    async def list_selected_images(self, call: Call) -> None:
        """Names of the images that suit the request, a line each."""
        request = await call.conn.decode(proto.ListSelectedImagesRequest)
        _write_lines(
            call,
            self.catalogue.select(
                request.directory_name, request.ignore_expiring_images, request.tags_to_match
            ),
        )

    async def get_image_inodes(
        self, call: Call, request: proto.GetImageInodesRequest
    ) -> proto.GetImageInodesResponse:
        """Single inodes of an image, by path."""
        image = await asyncio.to_thread(self.catalogue.get, request.image_name)
        if image is None or image.file_system is None:
            return proto.GetImageInodesResponse()
        numbers, inodes, links = await asyncio.to_thread(
            find_inodes, image.file_system, request.filenames
        )
        return proto.GetImageInodesResponse(
            image_exists=True, inode_numbers=numbers, inodes=inodes, num_links=links
        )

    async def get_image_usage_estimate(
        self, call: Call, request: proto.GetImageUsageEstimateRequest
    ) -> proto.GetImageUsageEstimateResponse:
        """Bytes that an image is thought to take on disk."""
        entry = self.catalogue.entry(request.image_name)
        if entry is None:
            return proto.GetImageUsageEstimateResponse()
        return proto.GetImageUsageEstimateResponse(
            image_exists=True, usage_estimate=entry.usage_estimate
        )

    async def get_object_statistics(
        self, call: Call, request: proto.GetObjectStatisticsForImagesRequest
    ) -> proto.GetObjectStatisticsForImagesResponse:
        """What some images take, together."""
        try:
            return await asyncio.to_thread(
                statistics,
                request.image_names,
                self.catalogue,
                self._references,
                self._store,
                ignore_missing=request.ignore_missing,
            )
        except SmallStackError as error:
            call.failed(error)
            return proto.GetObjectStatisticsForImagesResponse(error=str(error))

    async def get_image_computed_files(
        self, call: Call, request: proto.GetImageComputedFilesRequest
    ) -> proto.GetImageComputedFilesResponse:
        """The files of an image whose content comes from a file generator."""
        image = await asyncio.to_thread(self.catalogue.get, request.image_name)
        if image is None or image.file_system is None:
            return proto.GetImageComputedFilesResponse()
        found = await asyncio.to_thread(computed_files, image.file_system)
        return proto.GetImageComputedFilesResponse(image_exists=True, computed_files=found)

    # Expiry.

    async def get_image_expiration(
        self, call: Call, request: proto.GetImageExpirationRequest
    ) -> proto.GetImageExpirationResponse:
        """When an image expires; the zero time for never."""
        entry = self.catalogue.entry(request.image_name)
        if entry is None:
            return proto.GetImageExpirationResponse(error="image not found")
        return proto.GetImageExpirationResponse(expires_at=entry.image.expires_at)

    async def change_image_expiration(
        self, call: Call, request: proto.ChangeImageExpirationRequest
    ) -> proto.ChangeImageExpirationResponse:
        """Let an image live longer."""
        name = request.image_name
        try:
            rights.check_expiration(call.peer, request.expires_at)
            entry = self.catalogue.entry(name)
            if entry is None:
                raise RefusedError(text="image not found")
            rights.check_image(call.peer, self.catalogue, name, entry)
            await asyncio.to_thread(self.catalogue.change_expiration, name, request.expires_at)
        except SmallStackError as error:
            call.failed(error)
            return proto.ChangeImageExpirationResponse(error=str(error))
        self.appeared(name)
        _log.info("ChangeImageExpiration(%s, %s) by %s", name, request.expires_at, call.peer)
        return proto.ChangeImageExpirationResponse()

    # Directories.

    async def check_directory(
        self, call: Call, request: proto.CheckDirectoryRequest
    ) -> proto.CheckDirectoryResponse:
        """Whether a directory is there."""
        exists = self.catalogue.metadata(request.directory_name) is not None
        return proto.CheckDirectoryResponse(directory_exists=exists)

    async def list_directories(self, call: Call) -> None:
        """Every directory, ended by one without a name."""
        for directory in self.catalogue.directories():
            call.conn.encode(directory)
        call.conn.encode(Directory())

    async def make_directory(
        self, call: Call, request: proto.MakeDirectoryRequest
    ) -> proto.MakeDirectoryResponse:
        """Make a directory for images, with those above it if asked."""
        name = check_directory(request.directory_name)
        rights.check_make_directory(call.peer, self.catalogue, name)
        await asyncio.to_thread(self.catalogue.make_directory, name, request.make_all)
        _log.info("MakeDirectory(%s) by %s", name, call.peer)
        return proto.MakeDirectoryResponse()

    async def delete_directory(
        self, call: Call, request: proto.DeleteDirectoryRequest
    ) -> proto.DeleteDirectoryResponse:
        """Remove an empty directory."""
        try:
            await asyncio.to_thread(self.catalogue.delete_directory, request.directory_name)
        except SmallStackError as error:
            return proto.DeleteDirectoryResponse(error=str(error))
        _log.info("DeleteDirectory(%s) by %s", request.directory_name, call.peer)
        return proto.DeleteDirectoryResponse()

    async def chown_directory(
        self, call: Call, request: proto.ChangeOwnerRequest
    ) -> proto.ChangeOwnerResponse:
        """Give a directory to a group."""
        name = check_directory(request.directory_name)
        if self.catalogue.metadata(name) is None:
            raise RefusedError(text=f'no metadata for: "{name}"')
        rights.check_chown(call.peer, self.catalogue, name, request.owner_group)
        await asyncio.to_thread(self.catalogue.set_owner, name, request.owner_group)
        _log.info("ChownDirectory(%s, %s) by %s", name, request.owner_group, call.peer)
        return proto.ChangeOwnerResponse()

    # Objects.

    async def list_unreferenced_objects(self, call: Call) -> None:
        """Objects that no image needs, ended by one of size 0."""
        found = await asyncio.to_thread(self._references.unreferenced)
        for start in range(0, len(found), _LISTED):
            for hash_, size in found[start : start + _LISTED]:
                call.conn.encode(proto.Object(hash=hash_, size=size))
            await call.conn.flush()
            await asyncio.sleep(0)  # others have their turn
        call.conn.encode(proto.Object())

    async def delete_unreferenced_objects(
        self, call: Call, request: proto.DeleteUnreferencedObjectsRequest
    ) -> proto.DeleteUnreferencedObjectsResponse:
        """Delete some or all objects that nothing needs."""
        count, freed = await asyncio.to_thread(
            self._references.delete_unreferenced, request.percentage, request.bytes
        )
        _log.info("DeleteUnreferencedObjects by %s: %d, %d bytes", call.peer, count, freed)
        return proto.DeleteUnreferencedObjectsResponse()

    async def get_replication_master(
        self, call: Call, request: proto.GetReplicationMasterRequest
    ) -> proto.GetReplicationMasterResponse:
        """This server is a master itself."""
        return proto.GetReplicationMasterResponse()

    # In threads, to their end whatever becomes of the caller.

    def put(self, name: str, image: Image, *, again: bool = False) -> None:
        """Check an image, bring its objects to the disk, then the image itself; blocks.

        ``again`` as in `ImageCatalogue.add`. Raises RefusedError, ImageError and their like.
        """
        if image.file_system is not None:
            if path := repeated_computed_file(image.file_system):
                raise RefusedError(text=f"duplicate computed inode: {path}")
            if hash_ := object_of_two_sizes(image.file_system):
                raise RefusedError(text=f"object: {hash_.hex()} has files of two sizes")
        objects = objects_of(image)
        self._references.hold(objects)
        try:
            self._check_objects(objects)
            self._store.sync()
            self.catalogue.add(name, image, again=again)
            self._references.add(objects)
        finally:
            self._references.release(objects)

    def _check_objects(self, objects: Mapping[bytes, int]) -> None:
        missing = []
        for hash_, size in objects.items():
            found = self._store.size(hash_)
            if not found:
                missing.append(hash_)
            elif size and found != size:
                raise RefusedError(text=f"object: {hash_.hex()} has {found} bytes, not {size}")
        if len(missing) == 1:
            raise RefusedError(text=f"object: {missing[0].hex()} is not available")
        if missing:
            raise RefusedError(text=f"{len(missing)} objects are not available")

    def _delete(self, name: str) -> None:
        objects = self._objects(name)
        self.catalogue.delete(name)
        self._references.remove(objects)

    def _remove_expired(self, name: str) -> None:
        objects = self._objects(name)
        if self.catalogue.expire(name):
            self._references.remove(objects)

    def _objects(self, name: str) -> dict[bytes, int]:
        """The objects of an image; what cannot be read stays referenced, on the safe side."""
        try:
            image = self.catalogue.get(name)
        except SmallStackError as error:
            _log.warning("its objects stay: %s", error)
            return {}
        return {} if image is None else objects_of(image)

    # Waiting.

    async def _wait(self, name: str, seconds: float) -> None:
        """Returns when an image of that name was added, or the time is over."""
        appeared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(name, set())
        waiting.add(appeared)
        try:
            async with asyncio.timeout(seconds):
                await appeared
        except TimeoutError:
            pass
        finally:
            waiting.discard(appeared)
            if not waiting:
                self._waiting.pop(name, None)

    def appeared(self, name: str) -> None:
        """An image was added: who waits for it goes on."""
        for future in self._waiting.get(name, ()):
            if not future.done():
                future.set_result(None)
        self._expiry_changed.set()

    async def _expire(self) -> None:
        while True:
            self._expiry_changed.clear()
            for name in self.catalogue.expired(Time.now()):
                try:
                    await asyncio.to_thread(self._remove_expired, name)
                    _log.info("image %s has expired", name)
                except SmallStackError as error:
                    _log.error("cannot remove the expired image %s: %s", name, error)
            due = self.catalogue.next_expiry()
            seconds = None
            if due is not None:
                # An image that could not be removed is tried again, but not at once.
                seconds = max(due.nanoseconds_since_epoch / 1e9 - time.time(), 1.0)
            try:
                async with asyncio.timeout(seconds):
                    await self._expiry_changed.wait()
            except TimeoutError:
                pass


def large(request_type: type[T], handle: Callable[[Call, T], Awaitable[Any]]) -> Handler:
    """A request/reply handler as a raw one, which codes its messages in threads."""

    async def handler(call: Call) -> None:
        conn = call.conn
        usual, conn.limits = conn.limits, IMAGE
        try:
            try:
                request = await conn.decode(request_type)
            except RemoteProtocolError as error:
                # Nobody knows where the next call would start: the line, then the end.
                conn.write(framing.error_line(str(error)))
                await conn.flush()
                raise
            reply = await handle(call, request)
        except (ConnectionClosedError, PeerStalledError, RemoteProtocolError):
            raise
        except SmallStackError as error:
            conn.write(framing.error_line(str(error)))
            if isinstance(error, RefusedError):
                return
            _log.warning("%s: %s: %s", call.peer, call.method.name, error)
        else:
            conn.write(b"\n")
            await conn.encode_in_thread(reply)
        finally:
            conn.limits = usual

    return handler


def _write_lines(call: Call, names: list[str]) -> None:
    call.conn.write(("".join(f"{name}\n" for name in names) + "\n").encode())


def has_passed(moment: Time) -> bool:
    """Whether a moment is not in the future."""
    return moment.nanoseconds_since_epoch <= Time.now().nanoseconds_since_epoch
