"""Images as archives: what a server gives away of an image, and takes back when it was deleted.

An archive is the gob of an image with its name, then its HMAC-SHA512 by a secret of the server's,
in ``.secret`` beside the images. One that this server made restores an image as it was, also under
a name that was deleted. Any other is an image of whoever brings it, under a name never used before.
Objects are no part of it.
"""

import asyncio
import hmac
import logging
import secrets
import threading
from collections.abc import Mapping
from typing import Final

from smallstack.durable import replace_file
from smallstack.images.errors import RefusedError
from smallstack.imageserver import rights
from smallstack.imageserver.service import ImageService, has_passed, large
from smallstack.proto import imageserver as proto
from smallstack.proto.image import Image
from smallstack.proto.kinds import Time
from smallstack.srpc.coder import IMAGE, NEED_MORE
from smallstack.srpc.gob import Decoder, Encoder
from smallstack.srpc.server import Call, Handler
from smallstack.telemetry.errors import SmallStackError, describe

SECRET: Final = ".secret"
SECRET_SIZE: Final = 32
DIGEST: Final = "sha512"
_log = logging.getLogger("smallstack.imageserver")


class ArchiveService:
    """Both methods, over the images of one service."""

    def __init__(self, images: ImageService) -> None:
        self._images = images
        self._secret = b""
        self._making = threading.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """For `Server.register`."""
        return {
            "GetImageArchive": large(proto.GetImageArchiveRequest, self.get_image_archive),
            "RestoreImageFromArchive": large(
                proto.RestoreImageFromArchiveRequest, self.restore_image
            ),
        }

    async def get_image_archive(
        self, call: Call, request: proto.GetImageArchiveRequest
    ) -> proto.GetImageArchiveResponse:
        """An image's archive."""
        try:
            data = await asyncio.to_thread(self._archive, request.image_name)
        except SmallStackError as error:
            call.failed(error)
            return proto.GetImageArchiveResponse(error=str(error))
        _log.info("GetImageArchive(%s) by %s", request.image_name, call.peer)
        return proto.GetImageArchiveResponse(archive_data=data)

    async def restore_image(
        self, call: Call, request: proto.RestoreImageFromArchiveRequest
    ) -> proto.RestoreImageFromArchiveResponse:
        """The image of an archive, added."""
        try:
            name = await asyncio.to_thread(self._restore, call, request)
        except SmallStackError as error:
            call.failed(error)
            return proto.RestoreImageFromArchiveResponse(error=str(error))
        _log.info("RestoreImageFromArchive(%s) by %s", name, call.peer)
        self._images.appeared(name)
        return proto.RestoreImageFromArchiveResponse()

    # In threads.

    def _archive(self, name: str) -> bytes:
        image = self._images.catalogue.get(name)
        if image is None:
            raise RefusedError(text=f"image: {name} does not exist")
        data = Encoder().encode(proto.ImageArchive(image_name=name, image=image))
        return data + hmac.digest(self._key(), data, DIGEST)

    def _restore(self, call: Call, request: proto.RestoreImageFromArchiveRequest) -> str:
        name, image, genuine = self._open(request.archive_data)
        if image.file_system is None:
            raise RefusedError(text="nil file-system")
        if not image.expires_at.is_zero():
            if not has_passed(image.expires_at):
                raise RefusedError(text=f"cannot restore before it expires, at {image.expires_at}")
            rights.check_expiration(call.peer, request.expires_at)
            if not request.expires_at.is_zero() and has_passed(request.expires_at):
                raise RefusedError(text="image has already expired")
            image.expires_at = request.expires_at
        if not genuine:
            image.created_by = call.peer.username
            image.created_on = Time.now()
        self._images.put(name, image, again=genuine)
        return name

    def _open(self, data: bytes) -> tuple[str, Image, bool]:
        """The name and image in an archive, and whether this server made it."""
        decoder = Decoder(IMAGE)
        decoder.feed(data)
        archive = decoder.decode(proto.ImageArchive)
        if archive is NEED_MORE:
            raise RefusedError(text="the archive ends too early")
        told = decoder.take_rest()
        made = hmac.digest(self._key(), data[: len(data) - len(told)], DIGEST)
        return archive.image_name, archive.image, hmac.compare_digest(told, made)

    def _key(self) -> bytes:
        with self._making:
            if not self._secret:
                path = self._images.catalogue.directory / SECRET
                try:
                    if not path.exists():
                        replace_file(path, secrets.token_bytes(SECRET_SIZE), 0o600)
                    self._secret = path.read_bytes()
                except OSError as error:
                    detail = f"{path}: {describe(error)}"
                    raise RefusedError(text=f"no secret for archives: {detail}") from error
            return self._secret
