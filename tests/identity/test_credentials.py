"""Which certificate of a directory is shown, and which next."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallstack.identity import pki
from smallstack.identity.credentials import ClientCredentials
from smallstack.identity.errors import (
    CertificateError,
    CredentialsExpiredError,
    NoCredentialsError,
)


@pytest.fixture
def authority(tmp_path: Path) -> pki.Authority:
    return pki.make_ca(tmp_path / "ca")


def _names(credentials: ClientCredentials) -> list[str]:
    return [pair.certificate.stem for pair in (credentials.pair, *credentials.others)]


def _expire(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    later = (datetime.now(UTC) + timedelta(days=days)).timestamp()
    monkeypatch.setattr("smallstack.identity.credentials.time.time", lambda: later)


def test_most_powers_first_then_the_longest_life(authority: pki.Authority, tmp_path: Path) -> None:
    for name, methods, days in (
        ("none", [], 300),
        ("one", ["Hypervisor.StopVm"], 300),
        ("two", ["Hypervisor.StopVm", "Hypervisor.StartVm"], 30),
        ("three", ["Hypervisor.StopVm", "Hypervisor.StartVm"], 300),
        ("all", ["*.*"], 30),
    ):
        pki.issue(authority, name, methods=methods, days=days).write(tmp_path / "ssl", name)
    found = ClientCredentials.load(tmp_path / "ssl")
    assert _names(found) == ["all", "three", "two", "one", "none"]
    following = found.next()
    assert following is not None
    assert _names(following) == ["three", "two", "one", "none"]
    (tmp_path / "ssl" / "two.key").write_text("broken since")
    following = following.next()
    assert following is not None
    assert _names(following) == ["one", "none"]
    following = following.next()
    assert following is not None
    assert following.next() is None


def test_what_cannot_be_used_stands_in_nobodys_way(
    authority: pki.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki.issue(authority, "old", methods=["*.*"], days=30).write(tmp_path / "ssl", "old")
    pki.issue(authority, "good", days=300).write(tmp_path / "ssl", "good")
    (tmp_path / "ssl" / "x.cert").write_text("no certificate")
    (tmp_path / "ssl" / "x.key").write_text("no key")
    assert _names(ClientCredentials.load(tmp_path / "ssl")) == ["old", "good"]
    _expire(monkeypatch, 40)
    assert _names(ClientCredentials.load(tmp_path / "ssl")) == ["good"]
    _expire(monkeypatch, 400)
    with pytest.raises((CertificateError, CredentialsExpiredError)):
        ClientCredentials.load(tmp_path / "ssl")


def test_upstreams_names_and_ours(authority: pki.Authority, tmp_path: Path) -> None:
    with pytest.raises(NoCredentialsError):
        ClientCredentials.load(tmp_path / "ssl")
    pki.issue(authority, "plain").write(tmp_path / "ssl")
    pki.issue(authority, "root", methods=["*.*"]).write(tmp_path / "ssl", "root")
    (tmp_path / "ssl" / "lonely.key").write_text("no certificate beside it")
    assert _names(ClientCredentials.load(tmp_path / "ssl")) == ["root", "cert"]
