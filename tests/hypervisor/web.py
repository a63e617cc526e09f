"""A web server of the test's own, on loopback, that does what it is told, also what it must not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[["Asked", asyncio.StreamWriter], Coroutine[None, None, None]]

HERE = ("*", "localhost", "127.0.0.1")
"""Hosts of images, the servers that the tests start among them."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]


@dataclass
class Server:
    """What it answers, by path, and what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Of something of its own."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            asked = Asked(head[0].split()[1], headers)
            self.asked.append(asked)
            await self.answers[asked.path](asked, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server on a port of loopback."""
    server = Server(scheme="https" if context else "http")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


def head(status: str, *lines: str) -> bytes:
    """The head of an answer."""
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode()


def file(
    data: bytes,
    *lines: str,
    length: int | None = None,
    cut: list[int] | None = None,
    stall: asyncio.Event | None = None,
    chunked: bool = False,
) -> Answer:
    """A file, as a good server sends it: with conditions and ranges.

    ``length`` is what it says instead of the truth; ``cut``: bytes after which it hangs up, one for
    each request; with ``stall`` it waits there instead.
    """
    etags = [line.partition(": ")[2] for line in lines if line.startswith("ETag")]

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if etags and asked.headers.get("if-none-match") == etags[0].lower():
            writer.write(head("304 Not Modified", *lines))
            return
        start, status = 0, "200 OK"
        extra = list(lines)
        if "range" in asked.headers and asked.headers.get("if-range") in [e.lower() for e in etags]:
            start = int(asked.headers["range"].removeprefix("bytes=").rstrip("-"))
            status = "206 Partial Content"
            extra.append(f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        extra.append(
            "Transfer-Encoding: chunked"
            if chunked
            else f"Content-Length: {len(body) if length is None else length}"
        )
        writer.write(head(status, *extra))
        if cut:
            writer.write(body[: cut.pop(0)])
            await writer.drain()
            if stall is not None:
                await stall.wait()
            return
        if chunked:
            for at in range(0, len(body), 50_000):
                part = body[at : at + 50_000]
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            body = b"0\r\n\r\n"
        writer.write(body)

    return answer


def says(answer: bytes) -> Answer:
    """These bytes, whatever is asked."""

    async def write(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return write


def redirect(to: str, status: int = 302) -> Answer:
    """To somewhere else."""
    return says(head(f"{status} Moved", f"Location: {to}", "Content-Length: 0"))
