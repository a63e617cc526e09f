"""Both loops for every asynchronous test, and a daemon's parts on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.pages import Pages, document, paragraph, table
from smallstack.daemon.rpc_metrics import RpcMetrics
from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials, Pair, ServerCredentials
from smallstack.proto.hypervisor import every as hypervisor
from smallstack.srpc.server import Call, Server
from smallstack.telemetry.metrics import Metrics


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs in both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Site:
    """Certificates: the server's, a user's, a stranger's."""

    server: ServerCredentials
    user: ClientCredentials
    stranger: ClientCredentials


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    authority = pki.make_ca(directory / "ca")
    pki.issue(authority, "alice").write(directory / "alice")
    pki.issue(pki.make_ca(directory / "other", "X"), "eve").write(directory / "eve")
    pair = Pair(*pki.issue(authority, "server", server=True).write(directory / "server"))
    return Site(
        ServerCredentials(pair, directory / "ca" / "ca.pem"),
        ClientCredentials.load(directory / "alice"),
        ClientCredentials.load(directory / "eve"),
    )


@dataclass
class Daemon:
    """A running one."""

    server: Server
    listener: Listener
    metrics: Metrics
    address: tuple[str, int]

    async def exchange(self, data: bytes, **options: Any) -> bytes:
        """Everything that comes back for ``data`` until the server closes."""
        reader, writer = await asyncio.open_connection(*self.address, **options)
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer


Start = Callable[..., AbstractAsyncContextManager[Daemon]]


@pytest.fixture
def start() -> Start:
    @asynccontextmanager
    async def started(
        credentials: ServerCredentials | None = None,
        *,
        host: str = "127.0.0.1",
        open_pages: bool = False,
        healthy: Callable[[], str] = lambda: "",
        listener_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Daemon]:
        metrics = Metrics()
        insecure = credentials is None
        server = Server(credentials, insecure=insecure, observer=RpcMetrics(metrics), **options)

        async def get_capacity(call: Call, request: Any) -> Any:
            return hypervisor.GetCapacityResponse(num_cpus=2)

        async def power_off(call: Call, request: Any) -> Any:
            return hypervisor.PowerOffResponse()

        server.register("Hypervisor", {"GetCapacity": get_capacity, "PowerOff": power_off})
        pages = Pages(metrics, open_pages=open_pages, healthy=healthy, server=server)

        async def index(_: object) -> Any:
            rows = table(["Name"], [["<b>x</b>"]])
            return document("Agent <1>", paragraph("a & b"), rows)

        pages.add("/", index)
        await pages.start()
        listener = Listener(server, pages.factory, **(listener_options or {}))
        for sock in bind(host, 0):
            await listener.add(sock)
        try:
            yield Daemon(server, listener, metrics, listener.addresses[0])
        finally:
            await listener.close(grace=1)
            await pages.stop()

    return started
