"""A plain server on loopback for the handlers a test gives."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from smallstack.daemon.listener import Listener, bind
from smallstack.srpc.server import Handler, Server

Serve = Callable[[str, Mapping[str, Handler]], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def serving(service: str, handlers: Mapping[str, Handler]) -> AsyncIterator[str]:
        server = Server(insecure=True)
        server.register(service, handlers)
        listener = Listener(server)
        for sock in bind("127.0.0.1", 0):
            await listener.add(sock)
        try:
            yield f"127.0.0.1:{listener.addresses[0][1]}"
        finally:
            await listener.close(grace=1)

    return serving
