"""Opens the connection a command line asks for."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from smallstack.cli.options import Target, run
from smallstack.client.hypervisor import HypervisorClient

T = TypeVar("T")


def connector(target: Target) -> Callable[[], Awaitable[HypervisorClient]]:
    """A function that opens a fresh connection to the target's Hypervisor."""

    async def connect() -> HypervisorClient:
        return await HypervisorClient.connect(target.address, target.credentials())

    return connect


def ask(target: Target, work: Callable[[HypervisorClient], Awaitable[T]]) -> T:
    """What comes of one piece of work over a connection of its own; a failure ends the program."""

    async def connected() -> T:
        async with await connector(target)() as client:
            return await work(client)

    return run(connected())
