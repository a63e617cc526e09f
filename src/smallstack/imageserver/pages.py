"""The image server's pages: a list of what is there at ``/``, one image at ``/images/NAME``."""

import os

from aiohttp import web

from smallstack.daemon.pages import Pages, document, paragraph, table
from smallstack.images.catalogue import ImageCatalogue
from smallstack.imageserver.objects import GET_SLOTS, ObjectService
from smallstack.imageserver.references import References

MIB = 1 << 20


class StatusPages:
    """Adds the pages to a daemon's."""

    def __init__(
        self,
        catalogue: ImageCatalogue,
        objects: ObjectService,
        references: References,
        insecure: bool = False,
    ) -> None:
        """``insecure``: say so on the page."""
        self._catalogue = catalogue
        self._objects = objects
        self._references = references
        self._insecure = insecure

    def add_to(self, pages: Pages) -> None:
        """Before the pages are started."""
        pages.add("/", self.status)
        pages.add("/images/{name:.+}", self.image)

    async def status(self, _: web.Request) -> web.Response:
        """Images, directories, objects."""
        names = self._catalogue.names()
        rows = []
        logical = 0
        for name in names:
            entry = self._catalogue.entry(name)
            if entry is not None:
                logical += entry.data_bytes
                image = entry.image
                expires = str(image.expires_at) if entry.expires else ""
                size = f"{entry.data_bytes / MIB:.1f}"
                created = str(image.created_on)
                rows.append((name, created, image.created_by, entry.files, size, expires))
        directory = self._objects.store.directory
        space = os.statvfs(directory)
        free = space.f_bavail * space.f_frsize / MIB
        parts = [
            paragraph(
                f"{len(names)} images over {len(self._references)} objects in {directory}, "
                f"{free:.0f} MiB free."
            ),
            paragraph(
                f"Their files have {logical / MIB:.1f} MiB, stored once "
                f"{self._references.unique_bytes / MIB:.1f} MiB."
            ),
            paragraph(
                f"GetObjects() RPC slots: {self._objects.slots_used} out of {GET_SLOTS}. "
                f"Sent {self._objects.bytes_sent / MIB:.1f} MiB, "
                f"received {self._objects.bytes_received / MIB:.1f} MiB since the start."
            ),
            table(("image", "created", "by", "files", "MiB", "expires"), rows),
        ]
        if self._insecure:
            warning = "Running without TLS: anybody can change these images."
            parts.insert(0, paragraph(warning))
        if damaged := self._catalogue.damaged():
            parts.append(table(("damaged", "why"), damaged.items()))
        owners = [(d.name, d.metadata.owner_group) for d in self._catalogue.directories()]
        parts.append(table(("directory", "owner group"), owners))
        return document("image server", *parts)

    async def image(self, request: web.Request) -> web.Response:
        """All that is kept in memory of one image."""
        name = request.match_info["name"]
        entry = self._catalogue.entry(name)
        if entry is None:
            raise web.HTTPNotFound(text=f"There is no image {name}.\n")
        image = entry.image
        rows = [
            ("created", image.created_on),
            ("created by", image.created_by),
            ("created for", image.created_for),
            ("expires", image.expires_at if entry.expires else "never"),
            ("inodes", entry.inodes),
            ("files", entry.files),
            ("bytes of data", entry.data_bytes),
            ("bytes on disk, estimated", entry.usage_estimate),
            ("filter", _filter(image.filter.filter_lines if image.filter else None)),
            ("triggers", len(image.triggers.triggers) if image.triggers else 0),
            ("built from", f"{image.build_git_url} {image.build_branch} {image.build_commit_id}"),
            ("source image", image.source_image),
            ("packages", len(image.packages)),
            ("tags", ", ".join(f"{key}={value}" for key, value in image.tags.items())),
            ("SHA-512 of the file", entry.checksum.hex()),
        ]
        return document(f"image {name}", table(("", ""), rows))


def _filter(lines: list[str] | None) -> str:
    if lines is None:
        return "none: a sparse image"
    return f"{len(lines)} lines" if lines else "empty: full coverage"
