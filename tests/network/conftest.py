"""A private network namespace with a bridge, and what is left in it afterwards."""

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from smallstack.network.bridge import Bridge, ensure_bridge
from smallstack.network.guard import Guard
from smallstack.network.monitor import until_operational
from smallstack.network.netlink import Netlink
from tests.network import world


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test and its threads live in a network namespace of their own."""
    with world.private_namespace():
        yield


@pytest.fixture
async def netlink(namespace: None) -> AsyncIterator[Netlink]:
    """Netlink sockets in that namespace."""
    opened = await Netlink.open()
    yield opened
    await opened.close()


@pytest.fixture
async def bridge(netlink: Netlink) -> Bridge:
    """A bridge with the gateway's address, and a port so that it has a carrier."""
    made = await ensure_bridge(netlink, "br0", f"{world.GATEWAY}/24", create=True)
    await netlink.run(lambda sockets: _idle_port(sockets.route, made))
    assert await until_operational(netlink, "br0", 10)
    return made


def _idle_port(route: Any, bridge: Bridge) -> None:
    route.link("add", ifname="idle0", kind="veth", peer="idle1")
    route.link("set", index=socket.if_nametoindex("idle1"), state="up")
    route.link("set", index=socket.if_nametoindex("idle0"), master=bridge.index, state="up")


@pytest.fixture
async def guard(netlink: Netlink) -> AsyncIterator[Guard]:
    """An empty guard table."""
    made = Guard(netlink)
    await made.install()
    yield made
    await made.remove()


@pytest.fixture
def plug(bridge: Bridge) -> Iterator[Callable[..., world.Guest]]:
    """Makes guests on the bridge and takes them away again."""
    guests: list[world.Guest] = []

    def connect(
        ip: str, mac: str | None = None, port: str | None = None, on: Bridge | None = None
    ) -> world.Guest:
        guests.append(world.plug(on or bridge, ip, mac, port))
        return guests[-1]

    yield connect
    for guest in guests:
        guest.close()


@pytest.fixture
def nothing_left(bridge: Bridge, guard: Guard) -> Iterator[None]:
    """After the test there are as many descriptors and interfaces as before it."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    interfaces = socket.if_nameindex()
    yield
    assert world.settled(lambda: socket.if_nameindex() == interfaces), socket.if_nameindex()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
