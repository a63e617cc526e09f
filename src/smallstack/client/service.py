"""What the clients of all services share: connecting, calling, and data to be sent."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

from smallstack.client.errors import ServiceError, SourceError
from smallstack.identity.credentials import DEFAULT_DIRECTORY, ClientCredentials
from smallstack.identity.renewal import Renewable
from smallstack.srpc.client import CONNECT_TIMEOUT, Address, Client, dial
from smallstack.srpc.coder import IMAGE
from smallstack.srpc.connection import Connection
from smallstack.telemetry.errors import describe

T = TypeVar("T")
CHUNK: Final = 256 * 1024
"""Bytes read from a file and sent at a time."""
Credentials = Path | ClientCredentials | Renewable[ClientCredentials] | None
"""Who one is: a directory of certificates, what was loaded of one, or nobody, in plain text."""
Sent = Callable[[int, int], None]
"""Called with the bytes sent so far, and with all that there are to send."""


class _HasError(Protocol):
    error: str


R = TypeVar("R", bound=_HasError)


class ServiceClient:
    """One service over one connection; an asynchronous context manager that closes it."""

    service: str = ""

    def __init__(self, client: Client) -> None:
        """Several services may share ``client``."""
        self.client = client

    @classmethod
    async def connect(
        cls,
        address: Address,
        credentials: Credentials = DEFAULT_DIRECTORY,
        timeout: float = CONNECT_TIMEOUT,
        **options: Any,
    ) -> Self:
        """Connect to ``host:port`` within so many seconds.

        ``credentials`` are those in a directory, ``~/.ssl`` unless told otherwise, or loaded
        already, `ClientCredentials`; None is plain text, which only an insecure server speaks.
        ``options`` are those of `smallstack.srpc.client.dial`. Raises ConnectError or one of its
        kinds, NoCredentialsError, CertificateError, CredentialsExpiredError.
        """
        if isinstance(credentials, Path):
            credentials = await asyncio.to_thread(ClientCredentials.load, credentials)
        return cls(await dial(address, credentials, timeout, **options))

    async def close(self) -> None:
        """Close the connection."""
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(self, method: str, request: Any, response_type: type[T]) -> T:
        """One request/reply call of a method by its short name; the reply as it is."""
        return await self.client.request(f"{self.service}.{method}", request, response_type)

    async def checked(self, method: str, request: Any, response_type: type[R]) -> R:
        """As `call`; an error in the reply is raised as ServiceError."""
        return self.check(await self.call(method, request, response_type))

    async def large(self, method: str, request: Any, response_type: type[T]) -> T:
        """As `call`, of messages that may hold whole trees."""
        full = f"{self.service}.{method}"
        async with self.client.raw(full) as conn:
            usual, conn.limits = conn.limits, IMAGE
            try:
                await conn.encode_in_thread(request)
                await conn.flush()
                return await self.client.reply(conn, full, response_type)
            finally:
                conn.limits = usual

    @staticmethod
    def check(reply: R) -> R:
        """The reply, unless it tells an error: raises ServiceError."""
        if reply.error:
            raise ServiceError(text=reply.error)
        return reply


class Source:
    """Bytes to be sent whose number is known before: held in memory, or a file's."""

    __slots__ = ("_data", "_path", "size")

    def __init__(self, data: bytes | Path) -> None:
        """Raises SourceError for a file that cannot be looked at."""
        self._data = b"" if isinstance(data, Path) else data
        self._path = data if isinstance(data, Path) else None
        self.size = len(self._data)
        """Bytes."""
        if self._path is not None:
            try:
                self.size = self._path.stat().st_size
            except OSError as error:
                raise SourceError(name=self._path, detail=describe(error, self._path)) from error

    async def send(self, conn: Connection, sent: Sent | None = None) -> None:
        """Queue and flush it all; ``sent`` hears of it. Raises SourceError, also when the file got
        shorter.
        """
        if self._path is None:
            conn.write(self._data)
            await conn.flush()
            return
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(name=self._path, detail=describe(error, self._path)) from error
        try:
            await send_file(conn, fd, self.size, sent=sent)
        except OSError as error:
            raise SourceError(name=self._path, detail=describe(error, self._path)) from error
        finally:
            os.close(fd)


async def send_file(
    conn: Connection, fd: int, size: int, offset: int = 0, sent: Sent | None = None
) -> None:
    """Send ``size`` bytes of an open file, read in the thread pool; ``sent`` hears of every piece.

    Raises OSError of the file; EOF before its time is one.
    """
    end = offset + size
    while offset < end:
        count = min(CHUNK, end - offset)
        data = await asyncio.to_thread(os.pread, fd, count, offset)
        if not data:
            raise OSError(f"it ended {end - offset} bytes too early")
        conn.write(data)
        await conn.flush()
        offset += len(data)
        if sent is not None:
            sent(size - (end - offset), size)


async def receive(conn: Connection, size: int) -> AsyncGenerator[bytes, None]:
    """The next ``size`` raw bytes in pieces; raises ConnectionClosedError if they do not come."""
    while size:
        data = await conn.read_some(min(size, CHUNK))
        if not data:
            data = await conn.read_exactly(size)  # raises, with the number that is missing
        size -= len(data)
        yield data
