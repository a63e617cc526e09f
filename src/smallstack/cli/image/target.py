"""Which image server a command line means, and the connection to it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from smallstack.cli.options import run, with_port

if TYPE_CHECKING:
    from smallstack.control.image_server import ImageServer
    from smallstack.srpc.client import Client

T = TypeVar("T")
PORT: Final = 6971
DEFAULT_IMAGE_SERVER: Final = f"localhost:{PORT}"


@dataclass(frozen=True)
class ImageTarget:
    """An image server, and as whom to go there."""

    address: str
    cert_directory: Path
    plain: bool

    def server(self) -> "ImageServer":
        """The server with its credentials loaded; raises NoCredentialsError and its like."""
        from smallstack.control.image_server import ImageServer
        from smallstack.identity.credentials import ClientCredentials

        credentials = None if self.plain else ClientCredentials.load(self.cert_directory)
        return ImageServer(with_port(self.address, PORT), credentials)

    def run(self, work: "Callable[[Client], Awaitable[T]]") -> T:
        """Run ``work`` with a connection; a failure is one line and an exit code."""

        async def connected() -> T:
            async with self.server().connect() as client:
                return await work(client)

        return run(connected())
