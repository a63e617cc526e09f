"""Certificates, keys and authorities that change under a running daemon, and their end."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smallstack.daemon.certificates import Certificates, ends_soon
from smallstack.daemon.listener import Listener, bind
from smallstack.daemon.rpc_metrics import RpcMetrics
from smallstack.identity import certificate, pki
from smallstack.identity.credentials import ClientCredentials, Pair
from smallstack.identity.errors import CertificateError, CredentialsExpiredError
from smallstack.identity.renewal import Renewable
from smallstack.srpc.client import dial
from smallstack.srpc.errors import BadCertificateError
from smallstack.srpc.server import Server
from smallstack.telemetry.metrics import Metrics


class Files:
    """The files of a daemon, as its administrator would replace them, and users' certificates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.own = directory / "own"
        self.ca = directory / "CA.pem"
        self.metrics = Metrics()
        self.authority = self.new_authority("first")
        self.issue("server one")

    @property
    def pair(self) -> Pair:
        return Pair(self.own / "cert.pem", self.own / "key.pem")

    def new_authority(self, name: str) -> pki.Authority:
        made = pki.make_ca(self.directory / name, name)
        self.trust(self.directory / name / "ca.pem")
        return made

    def trust(self, *places: Path) -> None:
        self.ca.write_bytes(b"".join(place.read_bytes() for place in places))

    def issue(self, name: str, days: int = 365) -> None:
        pki.issue(self.authority, name, server=True, days=days).write(self.own)

    def user(self, name: str) -> ClientCredentials:
        pki.issue(self.authority, name).write(self.directory / name)
        return ClientCredentials.load(self.directory / name)

    def certificates(self) -> Certificates:
        return Certificates(self.pair, self.ca, None, self.metrics)

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"smallstack_{name}", labels)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[tuple[Certificates, tuple[str, int]]]:
    certificates = files.certificates()
    server = Server(certificates.server, observer=RpcMetrics(Metrics()))
    listener = Listener(server)
    for sock in bind("127.0.0.1", 0):
        await listener.add(sock)
    try:
        yield certificates, listener.addresses[0]
    finally:
        await listener.close(0)


async def shown(address: tuple[str, int], user: ClientCredentials) -> str:
    """The name in the certificate that the server shows to somebody it accepts."""
    async with await dial(address, user) as client:
        await client.ping()
        assert client.conn.tls is not None
        leaf = client.conn.tls.getpeercert(binary_form=True)
    assert leaf is not None
    return certificate.parse(leaf).common_name


async def test_the_next_handshake_has_the_new_certificate(files: Files) -> None:
    alice = files.user("alice")
    async with serving(files) as (_, address), await dial(address, alice) as before:
        await before.ping()
        assert await shown(address, alice) == "server one"
        files.issue("server two")
        assert await shown(address, alice) == "server two"
        await before.ping()  # connections that were made stay
    assert files.value("certificate_renewals_total", outcome="used") == 1
    assert files.value("certificate_renewals_total", outcome="failed") == 0


async def test_authorities_come_and_go(files: Files) -> None:
    alice = files.user("alice")
    async with serving(files) as (_, address):
        files.authority = files.new_authority("second")
        bob = files.user("bob")
        assert await shown(address, bob) == "server one"
        with pytest.raises(BadCertificateError):
            await shown(address, alice)
        files.trust(files.directory / "first" / "ca.pem", files.directory / "second" / "ca.pem")
        assert await shown(address, alice) == await shown(address, bob) == "server one"


@pytest.mark.parametrize("what", ["cert.pem", "key.pem", "CA.pem"])
@pytest.mark.parametrize("how", ["broken", "empty", "gone", "of another"])
async def test_what_cannot_be_used_leaves_the_former(
    files: Files, what: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    alice = files.user("alice")
    place = files.ca if what == "CA.pem" else files.own / what
    good = place.read_bytes()
    async with serving(files) as (certificates, address):
        if how == "gone":
            place.unlink()
        elif how == "of another" and what != "CA.pem":
            place.write_bytes((files.directory / "alice" / what).read_bytes())
        elif how == "of another":
            place.write_bytes((files.own / "key.pem").read_bytes())
        else:
            place.write_text("" if how == "empty" else good.decode()[:200])
        with caplog.at_level(logging.ERROR, "smallstack.identity"):
            for _ in range(3):
                assert await shown(address, alice) == "server one"
        assert files.value("certificate_renewals_total", outcome="failed") == 1
        assert files.value("certificate_renewals_total", outcome="used") == 0
        (told,) = [record.getMessage() for record in caplog.records]
        assert told.endswith("; the former certificates stay in use")
        assert "\n" not in told
        assert str(files.directory) in told
        with pytest.raises(CertificateError):
            certificates.renew()
        place.write_bytes(good)
        files.issue("server two")
        assert await shown(address, alice) == "server two"


async def test_an_identity_authority_may_come_later(files: Files) -> None:
    place = files.directory / "IdentityCA.pem"
    with pytest.raises(CertificateError, match=r"IdentityCA\.pem"):
        Certificates(files.pair, files.ca, place, Metrics())
    certificates = Certificates(files.pair, files.ca, place, files.metrics, identity_optional=True)
    assert (await certificates.server.fresh()).authorities is None
    identities = pki.make_ca(files.directory / "identities", identity_only=True)
    place.write_bytes((identities.directory / "identity-ca.pem").read_bytes())
    subject = files.authority.certificate.subject.public_bytes()
    assert (await certificates.server.fresh()).authorities == frozenset({subject})
    place.write_text("broken")
    assert (await certificates.server.fresh()).authorities is not None
    place.unlink()
    assert (await certificates.server.fresh()).authorities is None


async def test_a_link_to_other_files(files: Files) -> None:
    """As orchestration mounts secrets: a symlink to a directory that is exchanged."""
    alice = files.user("alice")
    files.own.rename(files.directory / "v1")
    files.own.symlink_to("v1")
    async with serving(files) as (_, address):
        assert await shown(address, alice) == "server one"
        pki.issue(files.authority, "server two", server=True).write(files.directory / "v2")
        (files.directory / "new").symlink_to("v2")
        (files.directory / "new").rename(files.own)
        assert await shown(address, alice) == "server two"


async def test_renewal_at_a_signal_even_if_nothing_changed(files: Files) -> None:
    async with serving(files) as (certificates, _):
        certificates.renew()
        assert files.value("certificate_renewals_total", outcome="used") == 1


async def test_the_agents_own_certificate_for_calling_others(files: Files, tmp_path: Path) -> None:
    async with serving(files) as (_, address):
        place = tmp_path / "agent"
        pki.issue(files.authority, "agent one").write(place)
        pair = Pair(place / "cert.pem", place / "key.pem")
        agent = Renewable(lambda: ClientCredentials(pair), pair)
        async with await dial(address, agent) as client:
            await client.ping()
        first = agent.current
        async with await dial(address, agent) as client:
            await client.ping()
        assert agent.current is first
        pki.issue(files.authority, "agent two").write(place)
        async with await dial(address, agent) as client:
            await client.ping()
        assert agent.current is not first


async def test_one_that_was_never_good(files: Files) -> None:
    place = files.directory / "none"
    pair = Pair(place / "cert.pem", place / "key.pem")
    agent = Renewable(lambda: ClientCredentials(pair), pair)
    for _ in range(2):
        with pytest.raises(CertificateError, match="no such file; make it with") as raised:
            await agent.fresh()
        assert len(raised.traceback) < 10
    pki.issue(files.authority, "agent").write(place)
    assert (await agent.fresh()).pair == pair
    with pytest.raises(CertificateError):
        Certificates(Pair(place / "x", place / "y"), files.ca, None, Metrics())


async def test_whatever_goes_wrong_keeps_nobody_out(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    asked: list[int] = []

    def make() -> str:
        asked.append(1)
        if len(asked) == 2:
            raise ValueError("a bug")
        return f"made {len(asked)}"

    credentials = Renewable(make, [place])
    assert await credentials.fresh() == "made 1"
    place.write_text("changed")
    assert await credentials.fresh() == await credentials.fresh() == "made 1"
    with pytest.raises(ValueError, match="a bug"):
        asked.pop()
        credentials.renew()
    assert credentials.current == "made 1"
    place.write_text("changed again")
    many = await asyncio.gather(*(credentials.fresh() for _ in range(20)))
    assert set(many) == {"made 3"}
    assert len(asked) == 3, "one reads for all"


async def test_an_expired_client_certificate_waits_for_the_next(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = files.certificates()
    later = time.time() + 400 * 86400
    monkeypatch.setattr("smallstack.identity.credentials.time.time", lambda: later)
    with pytest.raises(CredentialsExpiredError):
        await certificates.client.fresh()
    files.issue("server two", days=800)
    assert await certificates.client.fresh()


def test_time_left(files: Files) -> None:
    files.issue("server one", days=100)
    files.certificates()
    cert, ca = str(files.own / "cert.pem"), str(files.ca)
    left = files.value("certificate_left_seconds", file=cert, name="server one")
    assert left is not None
    assert 99 * 86400 < left <= 100 * 86400
    left = files.value("certificate_left_seconds", file=ca, name="first")
    assert left is not None
    assert left > 3600 * 86400
    assert files.value("certificates_ending") == 0


@pytest.mark.parametrize(
    ("days", "age", "soon"),
    [(365, 334, False), (365, 336, True), (9, 5, False), (9, 7, True), (9, 10, True)],
)
def test_ends_soon(files: Files, days: int, age: int, soon: bool) -> None:
    files.issue("server one", days=days)
    one = certificate.load(files.pair.certificate)
    assert ends_soon(one, time.time() + age * 86400) is soon


def test_warnings_once_a_day(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.issue("server one", days=90)
    certificates = files.certificates()
    now = time.time()
    told: list[list[str]] = []
    for days in (0, 59, 70, 70.5, 71.2, 95):
        moment = now + days * 86400
        with monkeypatch.context() as patch:
            patch.setattr("smallstack.daemon.certificates.time.time", lambda: moment)  # noqa: B023
            caplog.clear()
            certificates.warn()
        told.append([r.getMessage().partition(str(files.own))[2] for r in caplog.records])
    assert told == [
        [],
        [],
        ["/cert.pem ends in 19 days: renew it"],
        [],
        ["/cert.pem ends in 18 days: renew it"],
        ["/cert.pem ended 5 days ago: renew it"],
    ]


def test_of_an_authority_renewed_under_its_name_the_later_counts(files: Files) -> None:
    old = files.ca.read_bytes()
    new = pki.make_ca(files.directory / "again", "first", days=20)
    files.trust(files.directory / "again" / "ca.pem")
    files.ca.write_bytes(files.ca.read_bytes() + old)
    assert new.certificate.subject == files.authority.certificate.subject
    files.certificates()
    assert files.value("certificates_ending") == 0


async def test_the_watch_starts_and_ends(files: Files) -> None:
    certificates = files.certificates()
    certificates.start()
    files.issue("server two")
    while files.value("certificate_renewals_total", outcome="used") != 1:
        await certificates.server.fresh()
    await certificates.close()
    await certificates.close()
