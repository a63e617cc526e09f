"""Which image server a command line means, and the connection to it."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from smallstack.cli.options import Target, run
from smallstack.cli.tool import Daemon

if TYPE_CHECKING:
    from smallstack.control.image_server import ImageServer
    from smallstack.srpc.client import Client

T = TypeVar("T")


class ImageTarget(Target, frozen=True):
    """An image server, and as whom to go there."""

    def server(self) -> "ImageServer":
        """The server with its credentials loaded; raises NoCredentialsError and its like."""
        from smallstack.control.image_server import ImageServer

        return ImageServer(self.address, self.credentials())

    def run(self, work: "Callable[[Client], Awaitable[T]]") -> T:
        """Run ``work`` with a connection; a failure is one line and an exit code."""

        async def connected() -> T:
            async with self.server().connect() as client:
                return await work(client)

        return run(connected())


IMAGE_SERVER: Final = Daemon("image-server", "image server", 6971, ImageTarget)
