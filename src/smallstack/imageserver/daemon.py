"""The image server as a daemon: catalogue and store opened, both services and pages on one port."""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from smallstack import settings
from smallstack.daemon.certificates import Certificates
from smallstack.daemon.hosts import HostPolicy
from smallstack.daemon.limits import CALLS_PER_SECOND
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.logger import LoggerService
from smallstack.daemon.pages import Pages
from smallstack.daemon.rpc_metrics import RpcMetrics
from smallstack.daemon.run import Runtime
from smallstack.daemon.trust import TRUST_VM_OWNERS, TRUSTED_GROUPS, TRUSTED_USERS, trusting
from smallstack.durable import boot_id, replace_file
from smallstack.identity.credentials import Pair
from smallstack.images.catalogue import ImageCatalogue
from smallstack.imageserver.archive import ArchiveService
from smallstack.imageserver.imports import ImportService
from smallstack.imageserver.objects import ObjectService
from smallstack.imageserver.pages import StatusPages
from smallstack.imageserver.references import References, objects_of
from smallstack.imageserver.service import ImageService, methods
from smallstack.imageserver.updates import UpdateService
from smallstack.objects.errors import ObjectCorruptError
from smallstack.objects.store import ObjectStore
from smallstack.settings import Setting, Values
from smallstack.srpc.server import Server
from smallstack.telemetry.errors import describe
from smallstack.telemetry.metrics import Metrics

PORT_NUMBER: Final = 6971
BOOT: Final = ".boot"
"""Beside the objects: the boot of the host in which all of them were last known to be whole."""
_log = logging.getLogger("smallstack.imageserver")

STATE_DIR = Setting(
    "state_dir",
    settings.path,
    Path("/var/lib/smallstack/imageserver"),
    "where images/ and objects/ are kept",
)
IMAGE_DIR = Setting(
    "image_dir", settings.text, "", "the images, if not in the state directory's images/"
)
OBJECT_DIR = Setting(
    "object_dir", settings.text, "", "the objects, if not in the state directory's objects/"
)
LISTEN = Setting("listen", settings.text, "", "address to listen on; empty: all of them")
PORT = Setting("port", settings.integer, PORT_NUMBER, "port for RPC and pages")
CA_FILE = Setting(
    "ca_file", settings.path, Path("/etc/ssl/CA.pem"), "authority for users and their rights"
)
IDENTITY_CA_FILE = Setting(
    "identity_ca_file",
    settings.text,
    "/etc/ssl/IdentityCA.pem",
    "authority for users without rights; the default need not exist",
)
CERT_FILE = Setting(
    "cert_file", settings.path, Path("/etc/ssl/imageserver/cert.pem"), "this server's certificate"
)
KEY_FILE = Setting(
    "key_file", settings.path, Path("/etc/ssl/imageserver/key.pem"), "its private key"
)
INSECURE = Setting(
    "insecure", settings.boolean, False, "no TLS; everybody may do everything: for tests only"
)
OPEN_PAGES = Setting("open_pages", settings.boolean, False, "show the pages to everybody")
ALLOW_UNAUTHENTICATED_READS = Setting(
    "allow_unauthenticated_reads", settings.boolean, False, "anybody may read images and objects"
)
ALLOW_PUBLIC_ADD_OBJECTS = Setting(
    "allow_public_add_objects", settings.boolean, False, "any user may add objects"
)
ALLOW_PUBLIC_CHECK_OBJECTS = Setting(
    "allow_public_check_objects", settings.boolean, False, "any user may look for objects"
)
ALLOW_PUBLIC_GET_OBJECTS = Setting(
    "allow_public_get_objects", settings.boolean, False, "any user may read objects"
)
IMPORT_HOSTS: Final[Setting[tuple[str, ...]]] = Setting(
    "import_hosts",
    settings.words,
    ("*",),
    "hosts of objects and trees to import: names, *.name, * for any; or none",
)

SETTINGS: Final = (
    STATE_DIR,
    IMAGE_DIR,
    OBJECT_DIR,
    LISTEN,
    PORT,
    CA_FILE,
    IDENTITY_CA_FILE,
    CERT_FILE,
    KEY_FILE,
    TRUSTED_USERS,
    TRUSTED_GROUPS,
    TRUST_VM_OWNERS,
    INSECURE,
    OPEN_PAGES,
    ALLOW_UNAUTHENTICATED_READS,
    ALLOW_PUBLIC_ADD_OBJECTS,
    ALLOW_PUBLIC_CHECK_OBJECTS,
    ALLOW_PUBLIC_GET_OBJECTS,
    CALLS_PER_SECOND,
    IMPORT_HOSTS,
)
_PUBLIC: Final = (
    (ALLOW_PUBLIC_ADD_OBJECTS, "ObjectServer.AddObjects"),
    (ALLOW_PUBLIC_CHECK_OBJECTS, "ObjectServer.CheckObjects"),
    (ALLOW_PUBLIC_GET_OBJECTS, "ObjectServer.GetObjects"),
)


class ImageServer:
    """Both services over one catalogue and one store."""

    def __init__(
        self,
        image_dir: Path,
        object_dir: Path,
        boot: str | None = None,
        *,
        import_hosts: HostPolicy | None = None,
    ) -> None:
        """``boot`` names the host's boot, when it is not this one.

        Raises StoreError, StoreBusyError.
        """
        self._boot = boot_id() if boot is None else boot
        self.store = ObjectStore(object_dir)
        self.references = References(self.store)
        self.catalogue = ImageCatalogue(image_dir)
        self.images = ImageService(self.catalogue, self.store, self.references)
        self.objects = ObjectService(self.store, self.references)
        self.updates = UpdateService(self.catalogue)
        self.archives = ArchiveService(self.images)
        self.imports = ImportService(
            self.images, self.store, self.references, import_hosts or HostPolicy()
        )
        self.lost = 0
        """Objects that images needed and the store lacked when it was opened."""

    def load(self) -> None:
        """Read the catalogue and look for its objects, in a thread; raises CatalogueError."""
        self.catalogue.load(lambda _, image: self.references.add(objects_of(image)))
        self._heal()
        lost = self.references.missing()
        self.lost = len(lost)
        if lost:
            _log.error(
                "%d objects of images are missing in %s, the first is %s: add those images again",
                len(lost),
                self.store.directory,
                lost[0].hex(),
            )

    def _heal(self) -> None:
        """After a restart of the host, check what no image needs, and remove what is wrong.

        Objects are synced before an image that needs them is taken in. Those that came for one that
        had not been added yet when the power went may lack bytes, and would be taken for whole.
        """
        mark = self.store.directory / BOOT
        with suppress(FileNotFoundError):
            if mark.read_text() == self._boot:
                return
        removed = 0
        for hash_, _ in self.references.unreferenced():
            try:
                self.store.verify(hash_)
            except (ObjectCorruptError, OSError) as error:
                _log.info("%s", describe(error))
                self.store.delete(hash_)
                removed += 1
        if removed:
            _log.warning("removed %d objects that a crash of the host had torn", removed)
        with suppress(OSError):  # a full disk: they are checked once more at the next start
            replace_file(mark, self._boot.encode(), sync=False)

    def trouble(self) -> str:
        """One line saying what is wrong; "" when nothing is."""
        if damaged := self.catalogue.damaged():
            return f"{len(damaged)} image(s) are damaged"
        return f"{self.lost} objects of images were missing at the start" if self.lost else ""

    def register(self, server: Server, public: frozenset[str] = frozenset()) -> None:
        """Serve both; ``public`` are further methods that any user may call."""
        table = methods(public)
        for part in (self.images, self.updates, self.archives):
            server.register("ImageServer", part.handlers(), table)
        server.register("ImageServer", self.imports.image_handlers(), table)
        server.register("ObjectServer", self.objects.handlers(), table)
        server.register("ObjectServer", self.imports.object_handlers(), table)

    def observe(self, metrics: Metrics) -> None:
        """Show what there is among the daemon's metrics."""
        metrics.gauge("images", "Images.", read=lambda: len(self.catalogue.names()))
        metrics.gauge(
            "image_file_bytes",
            "Bytes of the files of all images, as if none shared anything.",
            read=lambda: sum(e.data_bytes for e in self.catalogue.entries()),
        )
        metrics.gauge(
            "image_object_bytes",
            "Bytes of the objects that images refer to, each counted once.",
            read=lambda: self.references.unique_bytes,
        )
        metrics.gauge(
            "image_objects", "Objects that images refer to.", read=lambda: len(self.references)
        )
        metrics.gauge(
            "object_transfers",
            "GetObjects calls in progress.",
            read=lambda: self.objects.slots_used,
        )
        metrics.gauge(
            "objects_sent_bytes",
            "Bytes of objects sent since the start.",
            read=lambda: self.objects.bytes_sent,
        )
        metrics.gauge(
            "objects_received_bytes",
            "Bytes of objects received since the start.",
            read=lambda: self.objects.bytes_received,
        )

    async def close(self) -> None:
        """After the last call."""
        await self.images.close()
        self.store.close()


async def serve(runtime: Runtime, values: Values) -> None:
    """Run the daemon until it is told to stop; raises SmallStackError if it cannot."""
    # Before anything is made: without certificates nothing is.
    certificates = None if values[INSECURE] else _certificates(values, runtime)
    state = values[STATE_DIR]
    images = Path(values[IMAGE_DIR] or state / "images")
    server = ImageServer(
        images,
        Path(values[OBJECT_DIR] or state / "objects"),
        import_hosts=HostPolicy(values[IMPORT_HOSTS]),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        await asyncio.to_thread(server.load)
        rpc = Server(
            certificates.server if certificates else None,
            insecure=values[INSECURE],
            policy=await stack.enter_async_context(trusting(values)),
            allow_unauthenticated_reads=values[ALLOW_UNAUTHENTICATED_READS],
            observer=RpcMetrics(runtime.metrics),
            calls_per_second=values[CALLS_PER_SECOND],
        )
        logger = LoggerService()
        stack.callback(logger.close)
        rpc.register("Logger", logger.handlers())
        server.register(rpc, frozenset(name for setting, name in _PUBLIC if values[setting]))
        server.observe(runtime.metrics)
        status = StatusPages(server.catalogue, server.objects, server.references, values[INSECURE])
        pages = Pages(
            runtime.metrics,
            open_pages=values[OPEN_PAGES],
            healthy=server.trouble,
            server=rpc,
        )
        status.add_to(pages)
        await pages.start()
        listener = Listener(rpc, pages.factory)
        try:
            for sock in bind(values[LISTEN], values[PORT]):
                await listener.add(sock)
            if certificates is not None:
                certificates.start()
                stack.push_async_callback(certificates.close)
                runtime.on_reload(certificates.renew)
            server.images.start()
            _log.info(
                "serving %d images of %s on %s",
                len(server.catalogue.names()),
                images,
                ", ".join(f"{host}:{port}" for host, port in listener.addresses),
            )
            runtime.ready()
            await runtime.stopped()
        finally:
            await listener.close()
            await pages.stop()


def _certificates(values: Values, runtime: Runtime) -> Certificates:
    pair = Pair(values[CERT_FILE], values[KEY_FILE])
    identity = values[IDENTITY_CA_FILE]
    return Certificates(
        pair,
        values[CA_FILE],
        Path(identity) if identity else None,
        runtime.metrics,
        identity_optional=values.origin(IDENTITY_CA_FILE) == "default",
    )
