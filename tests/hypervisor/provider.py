"""A small identity provider: HTTPS, certificates for roles, as the agent expects one."""

import asyncio
import base64
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_der_public_key,
    load_pem_public_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from smallstack.identity import pki

Public = rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Provider:
    """It believes who shows a certificate that it made, of the role of that name."""

    def __init__(self, directory: Path) -> None:
        authority = pki.make_ca(directory, "who vouches for it")
        pki.issue(authority, "provider", server=True, names=["localhost"]).write(directory)
        self.ca_file = directory / "ca.pem"
        self._directory = directory
        self._issuer = name("roles")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ssh_key = ed25519.Ed25519PrivateKey.generate()
        now = datetime.now(UTC)
        self.roots = self._sign(self._issuer, self._key.public_key(), now, 3600, ca=True)
        (directory / "roles.pem").write_bytes(self.roots)
        self.lifetime = 3600
        """Seconds that a role's credentials are good for."""
        self.requestor_lifetime = 3600
        self.refuse = 0
        """The status that everything is answered with, if it is not 0."""
        self.spoil: Callable[[bytes], bytes] = lambda answer: answer
        self.asked: Counter[str] = Counter()
        self.last_asked: list[str] = []
        self._news = asyncio.Event()
        self.url = ""

    def requestor(self, role: str, public_pem: bytes, begun: int = 60) -> bytes:
        """A certificate that may request a role, for a Hypervisor's key."""
        public = load_pem_public_key(public_pem)
        start = datetime.now(UTC) - timedelta(seconds=begun)
        return self._sign(name(role), public, start, begun + self.requestor_lifetime)

    async def until(self, what: str, count: int) -> None:
        """Wait until it was asked that so often."""
        while self.asked[what] < count:
            self._news.clear()
            await self._news.wait()

    def _sign(
        self, subject: x509.Name, public: object, start: datetime, seconds: int, *, ca: bool = False
    ) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._issuer)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM)

    async def certgen(self, request: web.Request) -> web.Response:
        role, kind = request.match_info["role"], request.query["type"]
        if refused := self._refusal(request, kind, role):
            return refused
        form = await request.post()
        field = form["pubkeyfile"]
        assert isinstance(field, web.FileField)
        data = field.file.read()
        start = datetime.now(UTC) - timedelta(seconds=1)
        if kind == "x509":
            assert request.query["addGroups"] == "true"
            answer = self._sign(name(role), load_pem_public_key(data), start, self.lifetime + 1)
        else:
            public = load_ssh_public_key(data)
            assert isinstance(public, rsa.RSAPublicKey | ed25519.Ed25519PublicKey)
            answer = (
                SSHCertificateBuilder()
                .public_key(public)
                .type(SSHCertificateType.USER)
                .valid_principals([role.encode()])
                .valid_after(int(start.timestamp()))
                .valid_before(int(start.timestamp()) + self.lifetime + 1)
                .sign(self._ssh_key)
                .public_bytes()
            )
        return web.Response(body=self.spoil(answer))

    async def refresh(self, request: web.Request) -> web.Response:
        if refused := self._refusal(request, "refresh", ""):
            return refused
        text = str((await request.post())["pubkey"])
        public = load_der_public_key(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        start = datetime.now(UTC) - timedelta(seconds=1)
        answer = self._sign(name(_caller(request)), public, start, self.requestor_lifetime)
        return web.Response(body=self.spoil(answer))

    def _refusal(self, request: web.Request, what: str, role: str) -> web.Response | None:
        self.asked[what] += 1
        self._news.set()
        if self.refuse:
            return web.Response(status=self.refuse, text="not now")
        if role and role != _caller(request):
            return web.Response(status=403, text=f"you are {_caller(request)}")
        return None


def _caller(request: web.Request) -> str:
    assert request.transport is not None
    peer = request.transport.get_extra_info("peercert")
    named = dict(part for parts in peer["subject"] for part in parts)
    return str(named["commonName"])


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Provider]:
    """A provider on loopback."""
    made = Provider(directory)
    app = web.Application()
    app.router.add_post("/certgen/{role}", made.certgen)
    app.router.add_post("/v1/refreshRoleRequestingCert", made.refresh)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "roles.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    made.url = f"https://localhost:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
