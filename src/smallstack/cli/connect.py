"""Opens the connection a command line asks for."""

from collections.abc import Awaitable, Callable

from smallstack.cli.options import Target
from smallstack.client.hypervisor import HypervisorClient


def connector(target: Target) -> Callable[[], Awaitable[HypervisorClient]]:
    """A function that opens a fresh connection to the target's Hypervisor."""

    async def connect() -> HypervisorClient:
        return await HypervisorClient.connect(target.address, target.credentials())

    return connect
