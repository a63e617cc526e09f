"""The metadata server of one bridge: connections in, `routes` asked, answers out.

A caller is the VM that has the connection's source address as its primary one; the guard has seen
to it that nobody else can send from it. The control port on the same address is only opened here:
`MetadataServer.control_socket` is for the daemon's listener.

Bounds: 8 KiB for a request's head, 5 s to send it, 5 s between requests, 30 s for a client to take
64 KiB, 32 connections per address, and when those are taken the newcomer is turned away; 100
requests at once and 50 a second per address, beyond which a caller waits.
"""

import asyncio
import base64
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from smallstack.network.bridge import Bridge
from smallstack.network.metadata.cable import Cable
from smallstack.network.metadata.http import (
    TOKEN_SECONDS,
    HttpError,
    Reader,
    Request,
    response_head,
)
from smallstack.network.metadata.pace import Pace
from smallstack.network.metadata.routes import (
    TEXT,
    File,
    Missing,
    Refused,
    Rules,
    Signed,
    Text,
    Token,
    VmView,
    answer,
)
from smallstack.network.metadata.tracers import Tracers
from smallstack.network.netlink import Netlink
from smallstack.network.subnets import network_of
from smallstack.proto.vm import Subnet
from smallstack.telemetry.errors import SmallStackError, describe

_log = logging.getLogger("smallstack.network")
IDLE_SECONDS = 5
STALL_SECONDS = 30
CONNECTIONS_PER_ADDRESS = 32
REQUESTS_PER_SECOND, REQUESTS_AT_ONCE = 50, 100
CHUNK = 64 * 1024
TOKEN_HOPS = 1
"""How many networks a token crosses: it reaches the guest, and nothing that the guest routes to."""
Lookup = Callable[[str], VmView | None]
Sign = Callable[[bytes], Awaitable[bytes]]
"""Signs with the Hypervisor's key; raises SmallStackError."""


class MetadataServer:
    """Serves one bridge until it is closed."""

    def __init__(
        self,
        bridge: Bridge,
        lookup: Lookup,
        tracers: Tracers | None = None,
        rules: Rules | None = None,
        sign: Sign | None = None,
    ) -> None:
        """``lookup`` finds a VM by its primary address. Without ``sign`` there is no signature."""
        self.bridge = bridge
        self.tracers = tracers or Tracers()
        self.counters: Counter[str] = Counter()
        """Replies by status, and refused connections."""
        self._lookup = lookup
        self._rules = rules or Rules()
        self._sign = sign
        self._cable: Cable | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], str] = {}
        self._pace = Pace(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE)

    async def start(self, netlink: Netlink, control_port: int | None) -> None:
        """Connect to the bridge and serve. Raises MetadataError or NoPrivilegeError."""
        self._cable = await Cable.connect(netlink, self.bridge, control_port)
        await self.serve(self._cable.http)

    async def serve(self, listening: socket.socket) -> None:
        """Serve a listening socket, wherever it is from."""
        self._server = await asyncio.start_server(self._connected, sock=listening, limit=CHUNK)

    @property
    def mac(self) -> str:
        """The service's MAC on the bridge."""
        return self._connected_cable().mac

    @property
    def control_socket(self) -> socket.socket | None:
        """A listening socket on 169.254.169.254 and the control port; it stays ours to close.

        None when the service was started without a control port."""
        return self._connected_cable().control

    async def set_subnets(self, subnets: Iterable[Subnet]) -> None:
        """Answer VMs in exactly these subnets; those with metadata disabled are left out."""
        networks = [network_of(s) for s in subnets if not s.disable_metadata]
        await self._connected_cable().set_routes(networks)

    async def add_guest(self, ip: str, mac: str) -> None:
        """Know a VM's MAC before it asks."""
        await self._connected_cable().set_neighbour(ip, mac)

    async def remove_guest(self, ip: str) -> None:
        """Forget a VM, and hang up on it."""
        await self._connected_cable().remove_neighbour(ip)
        self._pace.forget(ip)
        for task, peer in list(self._connections.items()):
            if peer == ip:
                task.cancel()

    async def close(self) -> None:
        """Stop serving and take the namespace away."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        if self._cable is not None:
            await self._cable.close()
            self._cable = None

    def _connected_cable(self) -> Cable:
        if self._cable is None:
            raise RuntimeError("the metadata server is not started")
        return self._cable

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: str = writer.get_extra_info("peername", ("", 0))[0]
        task = asyncio.current_task()
        if task is None:
            return
        if sum(other == peer for other in self._connections.values()) >= CONNECTIONS_PER_ADDRESS:
            self.counters["turned away"] += 1
            writer.transport.abort()
            return
        self._connections[task] = peer
        try:
            await self._converse(peer, reader, writer)
        except (ConnectionError, TimeoutError):
            self.counters["broken off"] += 1
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            del self._connections[task]
            writer.close()
            with suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        requests = Reader()
        while True:
            try:
                request = await _next_request(requests, reader)
            except HttpError as error:
                await self._reply(writer, error.status, b"", TEXT, keep_alive=False)
                break
            if request is None:
                return
            delay = self._pace.delay(peer, time.monotonic())
            if delay:
                self.counters["held back"] += 1
                await asyncio.sleep(delay)
            await self._answer(peer, request, writer)
            if not request.keep_alive:
                break
        await _hang_up(reader, writer)

    async def _answer(self, peer: str, request: Request, writer: asyncio.StreamWriter) -> None:
        self.tracers.offer(peer, request.path)
        found = answer(request, self._lookup(peer), time.time_ns(), self._rules)
        bodiless, keep = request.method == "HEAD", request.keep_alive
        if isinstance(found, Signed):
            found = await self._signature(found.body)
        if isinstance(found, Text):
            await self._reply(writer, 200, found.body, TEXT, keep_alive=keep, bodiless=bodiless)
            return
        if isinstance(found, Token):
            await self._reply_token(writer, found, keep_alive=keep)
            return
        if isinstance(found, Refused):
            headers = {"Allow": "PUT"} if found.status == 405 else {}
            await self._reply(writer, found.status, b"", TEXT, keep_alive=keep, headers=headers)
            return
        if isinstance(found, File):
            if await self._send_file(found, request, writer):
                return
            if found.otherwise is not None:
                body = found.otherwise
                await self._reply(writer, 200, body, TEXT, keep_alive=keep, bodiless=bodiless)
                return
        if not isinstance(found, Missing | File):
            raise TypeError(found)
        await self._reply(writer, 404, b"", TEXT, keep_alive=keep)

    async def _signature(self, body: bytes) -> Text | Missing | Refused:
        if self._sign is None:
            return Missing()
        try:
            return Text(base64.encodebytes(await self._sign(body)))
        except SmallStackError as error:
            _log.warning("metadata: cannot sign: %s", error)
            return Refused(500)

    async def _reply_token(
        self, writer: asyncio.StreamWriter, token: Token, *, keep_alive: bool
    ) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TOKEN_HOPS)
        headers = {TOKEN_SECONDS: str(token.seconds)}
        await self._reply(writer, 200, token.body, TEXT, keep_alive=keep_alive, headers=headers)

    async def _send_file(self, found: File, request: Request, writer: asyncio.StreamWriter) -> bool:
        loop, path = asyncio.get_running_loop(), found.path
        try:
            file, size, chunk = await loop.run_in_executor(None, _open, path)
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("metadata: cannot read %s: %s", path, describe(error))
            return False
        try:
            self._write_head(writer, 200, size, found.content_type, keep_alive=request.keep_alive)
            left = 0 if request.method == "HEAD" else size
            while left and chunk:
                writer.write(chunk[:left])
                left -= len(chunk[:left])
                await _drain(writer)
                if left:
                    chunk = await loop.run_in_executor(None, file.read, CHUNK)
            if left:  # the file shrank while it was read
                raise ConnectionAbortedError
        finally:
            file.close()
        await _drain(writer)
        return True

    async def _reply(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        content_type: str,
        *,
        keep_alive: bool,
        bodiless: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._write_head(
            writer, status, len(body), content_type, keep_alive=keep_alive, headers=headers
        )
        if not bodiless:
            writer.write(body)
        await _drain(writer)

    def _write_head(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        length: int,
        content_type: str,
        *,
        keep_alive: bool,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.counters[str(status)] += 1
        writer.write(
            response_head(
                status,
                length,
                content_type,
                keep_alive=keep_alive,
                now=time.time(),
                headers=headers,
            )
        )


async def _next_request(requests: Reader, reader: asyncio.StreamReader) -> Request | None:
    """The next request; None when the client has closed or says nothing for too long."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            while (request := requests.next_request()) is None:
                data = await reader.read(CHUNK)
                if not data:
                    return None
                requests.feed(data)
            return request
    except TimeoutError:
        return None


async def _drain(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(STALL_SECONDS):
        await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close so that the reply arrives: a close with bytes unread would reset the connection."""
    if not writer.can_write_eof():
        return
    with suppress(OSError):
        writer.write_eof()
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(1):
            for _ in range(16):
                if not await reader.read(CHUNK):
                    return


def _open(path: Path) -> tuple[BinaryIO, int, bytes]:
    file = path.open("rb")
    try:
        size = file.seek(0, 2)
        file.seek(0)
        return file, size, file.read(CHUNK)
    except BaseException:
        file.close()
        raise
