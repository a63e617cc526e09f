"""URLs of images: what is taken, and from where.

``http`` and ``https``, and ``file`` below one directory that the operator names. A fragment
``#sha256=HEX`` (or sha512, blake3) says what the bytes must be; it never leaves the agent.

Whoever may create a VM may have the agent fetch a URL, with the agent's place in the network, and
reads in the guest whatever the server answered: any bytes are a raw disk. Any host is allowed
unless told otherwise, as with upstream, whose users fetch from wherever their images are; but see
`smallstack.daemon.hosts`. Where servers that creators must not read can be reached from the agent,
name the hosts.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from smallstack.daemon.hosts import HostPolicy
from smallstack.hypervisor.errors import RequestError
from smallstack.telemetry.errors import describe

MAX_URL: Final = 4096
"""Characters."""
_DIGEST: Final = re.compile(r"(sha256|sha512|blake3)=([0-9a-fA-F]+)")
_HEX: Final = {"sha256": 64, "sha512": 128, "blake3": 64}
_NOT_A_URL: Final = re.compile(r"[^!-~]")


class ImageUrlError(RequestError):
    """cannot get image {url}: {detail}"""


@dataclass(frozen=True)
class ImageUrl:
    """Where an image is, without the digest that it must have (hex by name)."""

    url: str
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """http, https or file."""
        return urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """The server's name or address."""
        return urlsplit(self.url).hostname or ""


def parse_image_url(text: str) -> ImageUrl:
    """Raises ImageUrlError for what can be no image's URL."""
    if len(text) > MAX_URL:
        raise ImageUrlError(url=text[:100] + "…", detail=f"it is longer than {MAX_URL} characters")
    bare, fragment = urldefrag(text)
    try:
        parts = urlsplit(bare)
        parts.port  # noqa: B018 - raises ValueError for a port that is none
    except ValueError as error:
        raise ImageUrlError(url=text, detail=str(error)) from None
    if parts.username is not None or parts.password is not None:
        # Every user may read a VM's URL.
        raise ImageUrlError(url=f"{parts.scheme}://…", detail="leave user and password out")
    if _NOT_A_URL.search(bare) or parts.scheme not in {"http", "https", "file"}:
        raise ImageUrlError(url=text, detail="write http://HOST/… or https://HOST/…")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query:
            raise ImageUrlError(url=text, detail="write file:///PATH")
    elif not parts.hostname:
        raise ImageUrlError(url=text, detail="it names no host")
    digests = {}
    if fragment:
        found = _DIGEST.fullmatch(fragment)
        if found is None or len(found[2]) != _HEX[found[1]]:
            raise ImageUrlError(
                url=text, detail="behind # stands sha256=, sha512= or blake3= and the whole digest"
            )
        digests[found[1]] = found[2].lower()
    return ImageUrl(bare, digests)


@dataclass(frozen=True)
class UrlPolicy(HostPolicy):
    """What an operator allows of URLs.

    ``ca_file``: an authority of its own for https, "" for the system's.
    """

    option: ClassVar[str] = "--image-url-hosts"
    local_directory: Path | None = None
    ca_file: str = ""

    def check(self, url: ImageUrl) -> None:
        """Raises ImageUrlError for a host or scheme that is not allowed."""
        if url.scheme != "file":
            why_not = self.why_not(url.host)
        elif self.local_directory is None:
            why_not = "file: is off, see --local-images-directory"
        else:
            return
        if why_not:
            raise ImageUrlError(url=url.url, detail=why_not)

    def redirected(self, url: ImageUrl, location: str) -> ImageUrl:
        """Where a server sends us on to. Raises ImageUrlError for where it may not."""
        try:
            there = parse_image_url(urldefrag(urljoin(url.url, location)).url)
        except (ValueError, ImageUrlError) as error:
            raise ImageUrlError(url=url.url, detail=f"redirected: {describe(error)}") from None
        if there.scheme == "file" or (url.scheme == "https" and there.scheme != "https"):
            raise ImageUrlError(url=url.url, detail=f"it redirects to {there.scheme}:")
        self.check(there)
        return there

    def open_local(self, url: ImageUrl) -> int:
        """A descriptor of a file: URL's file. Blocks. Raises ImageUrlError.

        Links are followed only within the directory.
        """
        assert self.local_directory is not None
        text = unquote(urlsplit(url.url).path)
        path = Path(text)
        if "\0" in text or text != os.path.normpath(text):
            raise ImageUrlError(url=url.url, detail="its path is not clean")
        try:
            base = self.local_directory.resolve(strict=True)
            if not path.is_relative_to(self.local_directory) and not path.is_relative_to(base):
                raise ImageUrlError(url=url.url, detail=f"it is not below {self.local_directory}")
            real = path.resolve(strict=True)
            if not real.is_relative_to(base):
                raise ImageUrlError(url=url.url, detail=f"it leads out of {self.local_directory}")
            fd = _open_below(base, real.relative_to(base).parts)
        except OSError as error:
            raise ImageUrlError(url=url.url, detail=describe(error)) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageUrlError(url=url.url, detail="it is no regular file")
        return fd


def _open_below(base: Path, parts: tuple[str, ...]) -> int:
    """Open a path without links: what was resolved cannot be made to lead elsewhere since."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    for number, name in enumerate(parts, 1):
        try:
            below = os.open(name, flags | (os.O_DIRECTORY if number < len(parts) else 0), dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
