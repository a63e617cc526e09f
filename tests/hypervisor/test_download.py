"""Transfers from servers that lie, stall, hang up, go in circles and change their minds."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from smallstack.daemon import lookups
from smallstack.daemon.lookups import USER_LOOK_UPS, LookUps
from smallstack.hypervisor import download
from smallstack.hypervisor.download import PIECE, Transfer, Validators, open_url
from smallstack.hypervisor.image_url import ImageUrl, ImageUrlError, UrlPolicy, parse_image_url
from smallstack.identity import pki
from tests.hypervisor.web import HERE, Asked, Server, file, head, redirect, says, serving

DATA = os.urandom(4_000_000)
CUT = 1_500_000
"""More than the client holds unread, which a connection that breaks takes with it."""
ETAG = 'ETag: "one"'
LAST = len(DATA) - 1
WEAK = 'ETag: W/"one"'
POLICY = UrlPolicy(HERE)
MODIFIED = "Last-Modified: Mon, 06 Jul 2026 09:00:00 GMT"


def begin(
    url: ImageUrl,
    known: Validators | None = None,
    policy: UrlPolicy = POLICY,
    *,
    by: AbstractResolver | None = None,
) -> AbstractAsyncContextManager[Transfer]:
    return open_url(policy, url, known, names=by or LookUps().of("somebody"))


async def fetch(server: Server, path: str = "/x", known: Validators | None = None) -> bytes:
    url = parse_image_url(server.url(path))
    async with begin(url, known) as transfer:
        assert not transfer.unchanged
        return b"".join([piece async for piece in transfer.pieces()])


async def refusal(server: Server, path: str = "/x") -> str:
    with pytest.raises(ImageUrlError) as caught:
        await fetch(server, path)
    assert str(caught.value).startswith(f"cannot get image {server.url(path)}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_file() -> None:
    async with serving() as server:
        server.answers = {
            "/x": file(DATA),
            "/chunked": file(DATA, chunked=True),
            "/twice": redirect("/once", 307),
            "/once": redirect(server.url("/x"), 301),
        }
        for path in ("/x", "/chunked", "/twice"):
            assert await fetch(server, path) == DATA
        assert {asked.headers["accept-encoding"] for asked in server.asked} == {"identity"}


async def test_no_piece_is_larger_than_one() -> None:
    async def few_and_then_many(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", f"Content-Length: {len(DATA)}"))
        for start in range(0, len(DATA), PIECE + 1000):
            writer.write(DATA[start : start + 1000])
            for _ in range(10):  # the client takes these first
                await asyncio.sleep(0)
            writer.write(DATA[start + 1000 : start + 1000 + PIECE])
            await writer.drain()

    async with serving() as server:
        server.answers["/x"] = few_and_then_many
        async with begin(parse_image_url(server.url("/x"))) as transfer:
            pieces = [piece async for piece in transfer.pieces()]
        assert b"".join(pieces) == DATA
        assert max(map(len, pieces)) <= PIECE


async def test_what_is_known_is_asked_for() -> None:
    async with serving() as server:
        server.answers["/x"] = file(DATA, ETAG, MODIFIED)
        url = parse_image_url(server.url("/x"))
        async with begin(url) as transfer:
            known = transfer.validators
            assert transfer.length == len(DATA)
        assert known == Validators('"one"', MODIFIED.partition(": ")[2])
        async with begin(url, known) as transfer:
            assert transfer.unchanged
        # One that takes no notice of the question, and one that has something else by now.
        server.answers["/x"] = says(
            head("200 OK", ETAG, MODIFIED, "Content-Length: 9") + b"123456789"
        )
        async with begin(url, known) as transfer:
            assert transfer.unchanged
        server.answers["/x"] = file(DATA, 'ETag: "two"', MODIFIED)
        assert await fetch(server, known=known) == DATA


@pytest.mark.parametrize("lines", [[ETAG], [ETAG, MODIFIED]])
async def test_a_cut_transfer_is_gone_on_with(lines: list[str]) -> None:
    async with serving() as server:
        server.answers["/x"] = file(DATA, *lines, cut=[CUT, CUT + 1])
        assert await fetch(server) == DATA
        first, second = [int(a.headers["range"][6:-1]) for a in server.asked[1:]]
        assert 0 < first <= CUT
        assert first < second <= first + CUT + 1
        assert {a.headers["if-range"] for a in server.asked[1:]} == {'"one"'}


async def test_cuts_that_end_it() -> None:
    async with serving() as server:
        server.answers["/x"] = file(DATA, cut=[CUT])
        assert "it was cut off after" in await refusal(server)
        server.answers["/x"] = file(DATA, WEAK, cut=[CUT])
        assert "it was cut off after" in await refusal(server)
        assert len(server.asked) == 2
        # Every attempt has to bring something.
        server.answers["/x"] = file(DATA, ETAG, cut=[CUT, 10])
        assert "it was cut off after" in await refusal(server)
        server.answers["/x"] = file(DATA, ETAG, chunked=True, cut=[0])
        assert "it was cut off after 0 bytes" in await refusal(server)
        # More was announced than comes.
        server.answers["/x"] = file(DATA, length=len(DATA) + 1)
        assert f"it was cut off after {len(DATA)} bytes" in await refusal(server)


async def test_another_image_in_the_middle() -> None:
    async with serving() as server:

        async def then(status: str, *lines: str) -> str:
            """What comes of it when it is gone on with; ``{at}`` is from where."""
            first = file(DATA, ETAG, cut=[CUT])

            async def both(asked: Asked, writer: asyncio.StreamWriter) -> None:
                if "range" not in asked.headers:
                    await first(asked, writer)
                    return
                at = int(asked.headers["range"][6:-1])
                told = {"at": at, "end": LAST, "left": len(DATA) - at}
                writer.write(head(status, *(line.format(**told) for line in lines)))

            server.answers["/x"] = both
            return await refusal(server)

        rest = "Content-Length: {left}"
        changed = "it changed while it was being fetched"
        assert changed in await then("200 OK", 'ETag: "two"', rest)
        assert changed in await then(
            "206 P", 'ETag: "two"', rest, "Content-Range: bytes {at}-{end}/4000000"
        )
        assert "its server cannot go on in the middle" in await then("200 OK", ETAG, rest)
        for line in (
            "bytes 99999-{end}/4000000",
            "bytes {at}-5/7",
            "bytes {at}-{end}/4000001",
            "bytes {at}-4000000/4000000",
            "bytes {at}-" + "9" * 5000 + "/*",
            "nonsense",
        ):
            told = await then("206 P", ETAG, rest, f"Content-Range: {line}")
            assert "sends another part than was asked for" in told
        told = await then("206 P", ETAG, "Content-Length: 5", "Content-Range: bytes {at}-{end}/*")
        assert "its server sends 5 bytes and calls them 'bytes " in told
        assert "404 Gone" in await then("404 Gone", rest)


async def test_what_ends_a_part_ends_no_image() -> None:
    """An image in chunks, of unknown length: cut, and gone on with by parts of every kind."""
    async with serving() as server:

        async def fetched(size: int, total: str, *, chunked: bool = False, more: int = 0) -> bytes:
            """By parts that say they have ``size`` bytes and have ``more``."""

            async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
                if "range" not in asked.headers:
                    writer.write(head("200 OK", ETAG, "Transfer-Encoding: chunked"))
                    writer.write(f"{CUT:x}\r\n".encode() + DATA[:CUT] + b"\r\n")
                    return
                at = int(asked.headers["range"][6:-1])
                end = min(at + size, len(DATA))
                body = DATA[at:end] + bytes(more)
                lines = [ETAG, f"Content-Range: bytes {at}-{end - 1}/{total}"]
                if chunked:
                    lines.append("Transfer-Encoding: chunked")
                    body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
                else:
                    lines.append(f"Content-Length: {end - at}")
                writer.write(head("206 Partial Content", *lines) + body)

            server.answers["/x"] = answer
            return await fetch(server)

        for chunked in (False, True):
            for size in (len(DATA), 1_000_000):
                assert await fetched(size, str(len(DATA)), chunked=chunked) == DATA
            with pytest.raises(ImageUrlError, match="does not say how long it is"):
                await fetched(1_000_000, "*", chunked=chunked)
            with pytest.raises(ImageUrlError, match="was cut off after"):
                await fetched(1000, str(len(DATA)), chunked=chunked)
        with pytest.raises(
            ImageUrlError, match="its server announced 4000000 bytes and sends more"
        ):
            await fetched(len(DATA), str(len(DATA)), chunked=True, more=1)


async def test_a_server_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
    async with serving() as server:
        stall = asyncio.Event()
        server.answers["/x"] = file(DATA, ETAG, cut=[100], stall=stall)
        assert "nothing came for 0.2 s" in await refusal(server)
        # Cut off by the stall, gone on with after it.
        server.answers["/x"] = file(DATA, ETAG, cut=[CUT], stall=stall)
        assert await fetch(server) == DATA

        async def silent(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
            await stall.wait()

        server.answers["/x"] = silent
        assert "127.0.0.1 does not answer" in await refusal(server)
        stall.set()


async def test_refusals() -> None:
    async with serving() as server:
        server.answers = {
            "/none": says(head("404 Not Found", "Content-Length: 0")),
            "/unasked": says(head("304 Not Modified")),
            "/endless": says(b"HTTP/1.1 200 OK\r\n\r\nbytes without a length"),
            "/circle": redirect("/circle2"),
            "/circle2": redirect("/circle"),
            "/nowhere": redirect(""),
            "/away": redirect("file:///etc/passwd"),
            "/link-local": redirect("http://169.254.169.254/latest/user-data"),
            "/noise": says(b"\0" * 100_000),
            "/long": says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000),
            "/closed": says(b""),
            "/length": says(head("200 OK", "Content-Length: -5")),
        }
        for path, told in (
            ("/none", "404 Not Found"),
            ("/unasked", "304 Not Modified"),
            ("/endless", "its server does not say how long it is"),
            ("/circle", "it redirects more than 5 times"),
            ("/nowhere", "it redirects more than 5 times"),
            ("/away", "it redirects to file:"),
            ("/link-local", "a link-local one"),
            ("/noise", ""),
            ("/long", ""),
            ("/closed", ""),
            ("/length", ""),
        ):
            assert told in await refusal(server, path)
        # A name that leads where nobody may go is refused before a connection is made.
        server.asked.clear()
        monkey = UrlPolicy(HERE)
        object.__setattr__(monkey, "admits", lambda host, address: host == address)
        url = parse_image_url(server.url("/none", "localhost"))
        with pytest.raises(ImageUrlError, match="localhost"):
            async with begin(url, policy=monkey):
                pytest.fail("it was reached")
        assert server.asked == []
    with pytest.raises(ImageUrlError, match="Connection refused"):
        await fetch(server)


@pytest.fixture
async def silence(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Queue[str]]:
    """No name server answers for names below ``silent`` while the test goes on; what is asked."""
    loop, ends, real = asyncio.get_running_loop(), threading.Event(), socket.getaddrinfo
    asked: asyncio.Queue[str] = asyncio.Queue()

    def hanging(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".silent"):
            loop.call_soon_threadsafe(asked.put_nowait, host)
            ends.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answered")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield asked
    ends.set()


async def test_names_that_nobody_answers_for(
    silence: asyncio.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold neither the threads of the loop nor those of another user."""
    names = LookUps()

    async def of(user: str, host: str, port: int = 80) -> bytes:
        async with begin(parse_image_url(f"http://{host}:{port}/x"), by=names.of(user)) as transfer:
            return b"".join([piece async for piece in transfer.pieces()])

    many = [asyncio.create_task(of("mallory", f"{n}.silent")) for n in range(100)]
    for _ in range(USER_LOOK_UPS):
        await silence.get()
    assert await asyncio.to_thread(len, many) == 100
    async with serving() as server:
        server.answers["/x"] = file(DATA)
        assert await of("alice", "localhost", server.port) == DATA
    assert silence.empty()
    for task in many:
        task.cancel()
    await asyncio.wait(many)
    # Threads that hang go on doing so, and count.
    monkeypatch.setattr(lookups, "LOOK_UP_SECONDS", 0.2)
    with pytest.raises(ImageUrlError, match=r"x\.silent: too many names .* after 0.2 s still"):
        await of("mallory", "x.silent")
    with pytest.raises(ImageUrlError, match=r"x\.silent: no name server has told its address"):
        await of("bob", "x.silent")
    with pytest.raises(ImageUrlError, match="label"):
        await of("bob", "x" * 70)


async def test_https(tmp_path: Path) -> None:
    authority = pki.make_ca(tmp_path / "ca")
    pki.issue(authority, "web", server=True, names=["localhost", "127.0.0.1"]).write(
        tmp_path / "web"
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "web" / "cert.pem", tmp_path / "web" / "key.pem")
    trusting = UrlPolicy(HERE, ca_file=str(tmp_path / "ca" / "ca.pem"))
    async with serving(context) as server, serving() as plain:
        plain.answers["/x"] = file(DATA)
        server.answers = {"/x": file(DATA), "/down": redirect(plain.url("/x"))}
        url = parse_image_url(server.url("/x", "localhost"))
        async with begin(url, policy=trusting) as transfer:
            assert b"".join([piece async for piece in transfer.pieces()]) == DATA
        with pytest.raises(ImageUrlError, match="it redirects to http:"):
            down = parse_image_url(server.url("/down", "localhost"))
            async with begin(down, policy=trusting):
                pytest.fail("it was followed")
        # The system's authorities know nothing of this one.
        with pytest.raises(ImageUrlError, match="certificate verify failed"):
            async with begin(url):
                pytest.fail("it was believed")
        with pytest.raises(ImageUrlError, match="--image-ca-file"):
            async with begin(url, policy=UrlPolicy(HERE, ca_file="/nonexistent")):
                pytest.fail("there is no authority")


async def test_files_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    policy = UrlPolicy(local_directory=tmp_path)
    url = parse_image_url(f"file://{path}")
    async with begin(url, policy=policy) as transfer:
        assert b"".join([piece async for piece in transfer.pieces()]) == DATA
        known = transfer.validators
    async with begin(url, known, policy) as transfer:
        assert transfer.unchanged
    path.write_bytes(DATA[1:])
    async with begin(url, known, policy) as transfer:
        assert not transfer.unchanged
        os.truncate(path, 1000)
        with pytest.raises(ImageUrlError, match="it ended after 1000 bytes"):
            assert [piece async for piece in transfer.pieces()]
