"""An image's bytes from where its URL says, in pieces, as long as the server goes on.

::

    GET ── 3xx, at most 5 ──► GET ── 304 ──► unchanged: it is here already
                               └──── 200 ──► pieces ── cut ──► GET Range, If-Range ── 206 ──► pieces

A transfer that is cut is gone on with, if the server said how to tell that the image is still the
same and the attempt before brought something. A server that sends nothing for STALL_SECONDS counts
as cut. Encodings are not asked for: what is compressed is told from the bytes.
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from smallstack.daemon.hosts import Allowed
from smallstack.daemon.lookups import NameLookUpError
from smallstack.hypervisor.image_url import ImageUrl, ImageUrlError, UrlPolicy
from smallstack.telemetry.errors import describe

STALL_SECONDS: Final = 60.0
"""How long BLOCK bytes may take."""
CONNECT_SECONDS: Final = 30.0
BLOCK: Final = 64 * 1024
"""Bytes that an attempt has to bring at least, for another one to follow."""
PIECE: Final = 256 * 1024
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Validators:
    """What tells whether an image is still the same; "" where the server says nothing."""

    etag: str = ""
    last_modified: str = ""

    @property
    def strong(self) -> str:
        """What If-Range takes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class Transfer:
    """One image under way. ``length``: bytes, None as long as the server does not say."""

    def __init__(self, validators: Validators, length: int | None, *, unchanged: bool) -> None:
        self.validators = validators
        self.length = length
        self.unchanged = unchanged
        """It is what the caller knows: there is nothing to fetch."""
        self.encoded = ""
        """How a server says it has compressed the image on its way, which nobody asked for."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes, in pieces of at most PIECE. Raises ImageUrlError."""
        raise NotImplementedError


@asynccontextmanager
async def open_url(
    policy: UrlPolicy, url: ImageUrl, known: Validators | None = None, *, names: AbstractResolver
) -> AsyncIterator[Transfer]:
    """Begin to fetch; ``known`` are the validators of what the caller has of it.

    ``names`` looks hosts up, see `LookUps.of`. Raises ImageUrlError.
    """
    policy.check(url)
    if url.scheme == "file":
        fd = await asyncio.to_thread(policy.open_local, url)
        try:
            yield _Local(url, fd, known)
        finally:
            os.close(fd)
        return
    context: ssl.SSLContext | bool = True
    if url.scheme == "https" and policy.ca_file:
        try:
            context = ssl.create_default_context(cafile=policy.ca_file)
        except OSError as error:
            detail = f"--image-ca-file {policy.ca_file}: {describe(error)}"
            raise ImageUrlError(url=url.url, detail=detail) from error
    allowed = Allowed(policy, names)
    connector = aiohttp.TCPConnector(resolver=allowed, ssl=context, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=PIECE,
        timeout=aiohttp.ClientTimeout(
            total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS
        ),
        trust_env=False,
    ) as session:
        requests = _Requests(session, policy, url)
        headers = {}
        if known is not None and known.etag:
            headers["If-None-Match"] = known.etag
        elif known is not None and known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
        transfer = _Remote(requests, await requests.get(headers))
        try:
            transfer.begin(known)
            yield transfer
        finally:
            transfer.response.close()


class _Local(Transfer):
    """A file of this machine. Its validators are its inode, size and times."""

    def __init__(self, url: ImageUrl, fd: int, known: Validators | None) -> None:
        status = os.fstat(fd)
        etag = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
        found = Validators(etag)
        super().__init__(found, status.st_size, unchanged=known == found)
        self._url = url
        self._fd = fd

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """As `Transfer.pieces`."""
        at = 0
        assert self.length is not None
        while at < self.length:
            try:
                data = await asyncio.to_thread(os.pread, self._fd, PIECE, at)
            except OSError as error:
                raise ImageUrlError(url=self._url.url, detail=describe(error)) from error
            if not data:
                raise ImageUrlError(url=self._url.url, detail=f"it ended after {at} bytes")
            at += len(data)
            yield data


class _Remote(Transfer):
    """A server's."""

    def __init__(self, requests: "_Requests", response: aiohttp.ClientResponse) -> None:
        super().__init__(_validators(response), _length(response), unchanged=False)
        self.encoded = response.headers.get("Content-Encoding", "").lower().replace("identity", "")
        self.response = response
        self._requests = requests
        self._end = self.length
        """Where the bytes end that this response brings; None until it does."""

    def begin(self, known: Validators | None) -> None:
        """Look at the answer. Raises ImageUrlError for one that brings no image."""
        status = self.response.status
        self.unchanged = known is not None and (
            status == 304 or (status == 200 and bool(known.etag) and known == self.validators)
        )
        if self.unchanged:
            return
        if status != 200:
            raise self._requests.error(_status(self.response))
        if self.length is None and not _is_chunked(self.response):
            raise self._requests.error("its server does not say how long it is")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """As `Transfer.pieces`."""
        at = begun = 0
        while True:
            data, cut, ended = await self._block()
            at += len(data)
            if self._end is not None and at > self._end:
                raise self._requests.error(f"its server announced {self._end} bytes and sends more")
            if data:
                yield data
            if ended and (self.length is None or at == self.length):
                return
            if not ended and not cut:
                continue
            cut = cut or f"{self._end} bytes were announced"
            if at - begun < BLOCK or not self.validators.strong:
                raise self._requests.error(f"it was cut off after {at} bytes: {cut}")
            self.response.close()
            await self._go_on(at)
            begun = at

    async def _block(self) -> tuple[bytes, str, bool]:
        """Some bytes; then why the transfer was cut, or whether it has ended."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(STALL_SECONDS):
                while size < BLOCK:
                    data = await self.response.content.read(PIECE - size)
                    if not data:
                        return b"".join(parts), "", True
                    parts.append(data)
                    size += len(data)
        except TimeoutError:
            return b"".join(parts), f"nothing came for {STALL_SECONDS:g} s", False
        except (aiohttp.ClientError, OSError) as error:
            return b"".join(parts), describe(error), False
        return b"".join(parts), "", False

    async def _go_on(self, at: int) -> None:
        """Ask for what is left from byte ``at`` on, of the same image."""
        headers = {"Range": f"bytes={at}-", "If-Range": self.validators.strong}
        response = self.response = await self._requests.get(headers)
        if response.status == 200:
            same = _validators(response) == self.validators
            raise self._requests.error(
                f"it was cut off after {at} bytes, and its server cannot go on in the middle"
                if same
                else "it changed while it was being fetched"
            )
        if response.status != 206:
            raise self._requests.error(_status(response))
        etag = response.headers.get("ETag", "")
        if etag and self.validators.etag and etag != self.validators.etag:
            raise self._requests.error("it changed while it was being fetched")
        self._end, self.length = self._part(at)

    def _part(self, at: int) -> tuple[int, int]:
        """Where the part ends that a 206 brings from ``at`` on, and the whole.

        A transfer in chunks has said nothing of its length before: what ends a part says nothing
        of the whole then, but for the total. Raises ImageUrlError for what does not fit.
        """
        said = self.response.headers.get("Content-Range", "")
        found = _RANGE.fullmatch(said)
        other = f"its server sends another part than was asked for: {said[:80]!r}"
        if found is None or int(found[1]) != at:
            raise self._requests.error(other)
        end = int(found[2]) + 1
        length = self.length if found[3] == "*" else int(found[3])
        if length is None:
            raise self._requests.error("its server does not say how long it is")
        if not at < end <= length or self.length not in {None, length}:
            raise self._requests.error(other)
        size = _length(self.response)
        if size not in {None, end - at}:
            raise self._requests.error(
                f"its server sends {size} bytes and calls them {said[:80]!r}"
            )
        return end, length


class _Requests:
    """Requests for one URL, wherever they are sent on to."""

    def __init__(self, session: aiohttp.ClientSession, policy: UrlPolicy, url: ImageUrl) -> None:
        self._session = session
        self._policy = policy
        self._url = url

    def error(self, detail: str) -> ImageUrlError:
        """What is told of a failure."""
        return ImageUrlError(url=self._url.url, detail=detail)

    async def get(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The answer that is no redirection."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    response = await self._session.get(
                        URL(url.url, encoded=True),
                        headers={"Accept-Encoding": "identity", **headers},
                        allow_redirects=False,
                    )
            except TimeoutError:
                raise self.error(f"{url.host} does not answer") from None
            except (aiohttp.ClientError, NameLookUpError, OSError, ValueError) as error:
                raise self.error(describe(error)) from error
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            try:
                url = self._policy.redirected(url, location)
            except ImageUrlError as error:
                raise self.error(error.detail) from None
        raise self.error(f"it redirects more than {MAX_REDIRECTS} times")


def _status(response: aiohttp.ClientResponse) -> str:
    return f"{response.status} {response.reason or ''}".rstrip()


def _validators(response: aiohttp.ClientResponse) -> Validators:
    headers = response.headers
    return Validators(headers.get("ETag", "")[:1024], headers.get("Last-Modified", "")[:64])


def _length(response: aiohttp.ClientResponse) -> int | None:
    return None if _is_chunked(response) else response.content_length


def _is_chunked(response: aiohttp.ClientResponse) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()
