"""The client of an identity provider, which makes certificates for roles: over HTTPS, as Keymaster.

::

    POST /certgen/ROLE?type=x509&addGroups=true    a file ``pubkeyfile``: PKIX in PEM
    POST /certgen/ROLE?type=ssh                    the same, as authorized_keys has it
    POST /v1/refreshRoleRequestingCert             a form: ``pubkey``, DER in base64 for URLs

Each is asked with a certificate that requests a role, for the Hypervisor's own key; each answers
with a certificate. Nothing is believed of an answer here but its size; no redirect is followed.
"""

import asyncio
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from smallstack.hypervisor.errors import HypervisorError
from smallstack.telemetry.errors import describe

SECONDS: Final = 60.0
"""For one answer, all together."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes."""


class ProviderUrlError(HypervisorError):
    """--identity-provider {url}: write https://HOST, with a port or a path if need be"""


class ProviderError(HypervisorError):
    """identity provider {url}: {detail}"""


class IdentityProvider:
    """One provider. Its methods raise ProviderError."""

    def __init__(self, url: str, authority: str = "") -> None:
        """``authority``: the file of who vouches for it, "" for the system's.

        Raises ProviderUrlError.
        """
        try:
            parsed = URL(url)
        except ValueError:
            raise ProviderUrlError(url=url) from None
        if parsed.scheme != "https" or not parsed.host or parsed.query_string or parsed.user:
            raise ProviderUrlError(url=url)
        self.url = url.rstrip("/")
        self._authority = authority

    async def open(self, certificate: Path, key: Path) -> "Asking":
        """As whom to ask: a certificate that requests a role, and its key, by their files."""
        try:
            context = await asyncio.to_thread(self._context, certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ProviderError(url=self.url, detail=describe(error)) from error
        return Asking(self.url, context)

    def _context(self, certificate: Path, key: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key, password=lambda: b"")
        return context


class Asking:
    """A provider, asked as somebody; an asynchronous context manager."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        """Use `IdentityProvider.open`."""
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> "Asking":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def certificate(self, role: str, public_pem: bytes) -> bytes:
        """An X.509 certificate in PEM."""
        return await self._certgen(role, "type=x509&addGroups=true", public_pem)

    async def ssh_certificate(self, role: str, public_line: bytes) -> bytes:
        """One of OpenSSH's, a line."""
        return await self._certgen(role, "type=ssh", public_line)

    async def requestor(self, public_base64: str) -> bytes:
        """Another certificate that requests the same role, which lasts longer; PEM."""
        form = aiohttp.FormData({"pubkey": public_base64})
        return await self._post("/v1/refreshRoleRequestingCert", form)

    async def _certgen(self, role: str, query: str, public: bytes) -> bytes:
        form = aiohttp.FormData()
        form.add_field("pubkeyfile", public, filename="pubkey", content_type="text/plain")
        return await self._post(f"/certgen/{quote(role, safe='')}?{query}", form)

    async def _post(self, target: str, form: aiohttp.FormData) -> bytes:
        url = URL(self._url + target, encoded=True)
        try:
            async with self._session.post(url, data=form, allow_redirects=False) as reply:
                data = b""
                async for piece in reply.content.iter_any():
                    data += piece
                    if len(data) > MAX_ANSWER:
                        break
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise ProviderError(url=self._url, detail=describe(error)) from error
        if reply.status != 200:
            said = data[:200].decode("utf-8", "replace")
            detail = f"it answered {reply.status} to {url.path}: {said}"
            raise ProviderError(url=self._url, detail=detail)
        if len(data) > MAX_ANSWER:
            detail = f"it answered {url.path} with more than {MAX_ANSWER} bytes"
            raise ProviderError(url=self._url, detail=detail)
        return data
