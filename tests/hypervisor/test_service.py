"""What a method does when its caller goes away, over a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from smallstack.client.hypervisor import HypervisorClient
from smallstack.daemon.listener import Listener, bind
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.service import Service
from smallstack.hypervisor.vm import Vm
from smallstack.network.dhcp.server import DhcpServer
from smallstack.proto.enums import State
from smallstack.srpc.observer import NoObserver
from smallstack.srpc.server import Server
from tests.hypervisor.fakes import FakeRuntime, make_vm

LONG = 10**18
"""Nanoseconds: decades."""


class Finished(NoObserver):
    """Tells that a call has asked for its VM, and that it has ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        self.ended.set()


@pytest.fixture
def observer() -> Finished:
    return Finished()


@asynccontextmanager
async def serving(path: Path, observer: Finished) -> AsyncIterator[tuple[Vm, str]]:
    """A running VM with this machine's own address, and the address of its agent."""
    vm = make_vm(path, FakeRuntime(), State.STOPPED)
    vm.info.address.ip_address = "127.0.0.1"
    task = vm.begin()
    await vm.start()

    def find(_ip: str) -> Vm:
        observer.begun.set()
        return vm

    parts = SimpleNamespace(
        store=SimpleNamespace(disabled=False), wiring=SimpleNamespace(dhcp=DhcpServer())
    )
    agent = cast("Agent", SimpleNamespace(vm=find, parts=parts))
    server = Server(insecure=True, observer=observer)
    server.register("Hypervisor", Service(agent).handlers())
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    try:
        yield vm, f"127.0.0.1:{listener.addresses[0][1]}"
    finally:
        await listener.close(0)
        task.cancel()
        await asyncio.wait([task])


async def probe(vm: Vm, client: HypervisorClient) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not await client.probe_vm_port(vm.ip, closed.getsockname()[1], LONG)


async def start(vm: Vm, client: HypervisorClient) -> None:
    await vm.stop()
    await client.start_vm(vm.ip, dhcp_timeout=LONG)


async def reboot(vm: Vm, client: HypervisorClient) -> None:
    await client.reboot_vm(vm.ip, dhcp_timeout=LONG)


@pytest.mark.parametrize("ask", [probe, start, reboot])
async def test_a_wait_ends_with_the_caller(
    tmp_path: Path,
    observer: Finished,
    ask: Callable[[Vm, HypervisorClient], Awaitable[None]],
) -> None:
    async with (
        serving(tmp_path, observer) as (vm, address),
        await HypervisorClient.connect(address, None) as client,
    ):
        asking = asyncio.ensure_future(ask(vm, client))
        await observer.begun.wait()
        await vm.until(lambda: vm.state is State.RUNNING)
        client.client.conn.abort()
        async with asyncio.timeout(20):
            await observer.ended.wait()
        await asyncio.wait([asking])
        await vm.until(lambda: vm.state is State.RUNNING)


@pytest.mark.parametrize("ask", [probe, start, reboot])
async def test_no_wait_is_longer_than_the_bound(
    tmp_path: Path,
    observer: Finished,
    ask: Callable[[Vm, HypervisorClient], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smallstack.hypervisor.methods.base.MAX_WAIT", 10**6)
    async with (
        serving(tmp_path, observer) as (vm, address),
        await HypervisorClient.connect(address, None) as client,
        asyncio.timeout(20),
    ):
        await ask(vm, client)
