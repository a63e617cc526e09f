"""Opens the connection a command line asks for."""

from collections.abc import Awaitable, Callable

from smallstack.cli.options import Target
from smallstack.client.hypervisor import HypervisorClient
from smallstack.identity.credentials import ClientCredentials


def connector(target: Target) -> Callable[[], Awaitable[HypervisorClient]]:
    """A function that opens a fresh connection to the target's Hypervisor."""

    async def connect() -> HypervisorClient:
        credentials = None if target.plain else ClientCredentials.load(target.cert_directory)
        return await HypervisorClient.connect(target.host_port, credentials)

    return connect
