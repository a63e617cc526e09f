"""A real image server over TLS on loopback, with users of different rights."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smallstack.control.image_server import ImageServer as Remote
from smallstack.daemon.hosts import HostPolicy
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.pages import Pages
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials, Pair, ServerCredentials
from smallstack.imageserver.daemon import ImageServer
from smallstack.imageserver.objects import ObjectService
from smallstack.imageserver.pages import StatusPages
from smallstack.srpc.server import Server
from smallstack.telemetry.metrics import Metrics


@dataclass
class Site:
    """Certificates: the server's; an operator with every right, a user with none, an owner."""

    server: ServerCredentials
    users: dict[str, ClientCredentials]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    authority = pki.make_ca(directory / "ca")
    pair = Pair(*pki.issue(authority, "server", server=True).write(directory / "server"))
    users = {}
    for name, methods, groups in (
        ("operator", ["*.*"], []),
        ("user", [], []),
        ("adder", ["ObjectServer.*", "ImageServer.AddImage"], []),
        ("fetcher", ["ObjectServer.GetObjects"], []),
        ("member", [], ["ops"]),
    ):
        pki.issue(authority, name, methods=methods, groups=groups).write(directory / name)
        users[name] = ClientCredentials.load(directory / name)
    return Site(ServerCredentials(pair, directory / "ca" / "ca.pem"), users)


@dataclass
class Running:
    """A running image server: its inside, and ways to it."""

    inside: ImageServer
    site: Site
    port: int
    metrics: Metrics
    listener: Listener

    async def close(self, grace: float) -> None:
        """As a daemon that is told to end."""
        await self.listener.close(grace=grace)

    def as_user(self, name: str) -> Remote:
        return Remote(f"127.0.0.1:{self.port}", self.site.users[name])

    @property
    def operator(self) -> Remote:
        return self.as_user("operator")


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(site: Site) -> Serve:
    @asynccontextmanager
    async def serving(
        directory: Path,
        *,
        hold_seconds: float = 11.0,
        public: frozenset[str] = frozenset(),
        import_hosts: tuple[str, ...] = ("*",),
        **options: Any,
    ) -> AsyncIterator[Running]:
        inside = ImageServer(
            directory / "images",
            directory / "objects",
            import_hosts=HostPolicy(import_hosts),
        )
        inside.objects = ObjectService(inside.store, inside.references, hold_seconds)
        inside.load()
        metrics = Metrics()
        server = Server(site.server, **options)
        inside.register(server, public)
        inside.observe(metrics)
        status = StatusPages(inside.catalogue, inside.objects, inside.references)
        pages = Pages(metrics, healthy=inside.trouble, server=server)
        status.add_to(pages)
        await pages.start()
        listener = Listener(server, pages.factory)
        for sock in bind("127.0.0.1", 0):
            await listener.add(sock)
        inside.images.start()
        try:
            yield Running(inside, site, listener.addresses[0][1], metrics, listener)
        finally:
            await listener.close(grace=1)
            await pages.stop()
            await inside.close()

    return serving
