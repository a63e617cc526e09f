"""Certificates made here are found, chosen and believed as they should be."""

import logging
import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from smallstack.identity import certificate, pki
from smallstack.identity.credentials import ClientCredentials, Pair, ServerCredentials, find_pairs
from smallstack.identity.errors import (
    AuthorityError,
    CertificateError,
    CredentialsExpiredError,
    ForeignCertificateError,
    NoCredentialsError,
    RenewalError,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pki.Authority:
    return pki.make_ca(tmp_path_factory.mktemp("pki"))


def _server(authority: pki.Authority, place: Path) -> ServerCredentials:
    pair = Pair(*pki.issue(authority, "server", server=True, names=["localhost"]).write(place))
    return ServerCredentials(pair, authority.directory / "ca.pem")


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a finished handshake in memory; raises ssl.SSLError of either side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server)
    waiting = [here, there]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    return there, here


def test_a_user_from_make_to_peer(authority: pki.Authority, tmp_path: Path) -> None:
    user = pki.issue(authority, "alice", groups=["dev"], methods=["Hypervisor.*"])
    user.write(tmp_path / "alice", "alice")
    client = ClientCredentials.load(tmp_path / "alice")
    there, _ = handshake(_server(authority, tmp_path / "s").context, client.context)
    leaf = there.getpeercert(binary_form=True)
    assert leaf is not None
    assert certificate.identify([leaf]) == certificate.Identity(
        "alice", frozenset({"dev"}), frozenset({"Hypervisor.*"})
    )


def test_keys_are_private_and_files_whole(authority: pki.Authority, tmp_path: Path) -> None:
    place, key = pki.issue(authority, "alice").write(tmp_path, "alice")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((authority.directory / "ca.key").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == [place.name, key.name]


def test_a_client_without_or_with_a_wrong_certificate_is_refused(
    authority: pki.Authority, tmp_path: Path
) -> None:
    server = _server(authority, tmp_path / "s")
    other = pki.make_ca(tmp_path / "other")
    pki.issue(other, "mallory", methods=["*.*"]).write(tmp_path / "m")
    pki.issue(authority, "daemon", server=True).write(tmp_path / "d")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server.context, bare)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        handshake(server.context, ClientCredentials.load(tmp_path / "m").context)
    with pytest.raises(ssl.SSLError, match="certificate purpose"):
        handshake(server.context, ClientCredentials.load(tmp_path / "d").context)
    there, _ = handshake(server.page_context, bare)
    assert there.getpeercert(binary_form=True) is None


def test_tls_before_1_2_is_refused(authority: pki.Authority, tmp_path: Path) -> None:
    pki.issue(authority, "alice").write(tmp_path / "a")
    client = ClientCredentials.load(tmp_path / "a")
    client.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        client.context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(_server(authority, tmp_path / "s").context, client.context)


def test_the_client_may_verify_the_server(authority: pki.Authority, tmp_path: Path) -> None:
    server = _server(authority, tmp_path / "s")
    pki.issue(authority, "alice").write(tmp_path / "a")
    client = ClientCredentials.load(tmp_path / "a", authority.directory / "ca.pem")
    handshake(server.context, client.context)
    other = pki.make_ca(tmp_path / "other")
    suspicious = ClientCredentials.load(tmp_path / "a", other.directory / "ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server.context, suspicious.context)
    pki.issue(authority, "eve").write(tmp_path / "e")
    impostor = ServerCredentials(
        Pair(tmp_path / "e" / "cert.pem", tmp_path / "e" / "key.pem"),
        authority.directory / "ca.pem",
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate purpose"):
        handshake(impostor.context, client.context)


def test_identity_authority_gives_no_methods(authority: pki.Authority, tmp_path: Path) -> None:
    identities = pki.make_ca(tmp_path / "id", "identities", identity_only=True)
    assert pki.Authority.load(tmp_path / "id", identity_only=True).directory == tmp_path / "id"
    pki.issue(identities, "ida", groups=["dev"], methods=["*.*"]).write(tmp_path / "ida")
    server = ServerCredentials(
        Pair(*pki.issue(authority, "server", server=True).write(tmp_path / "s")),
        authority.directory / "ca.pem",
        tmp_path / "id" / "identity-ca.pem",
    )
    there, _ = handshake(server.context, ClientCredentials.load(tmp_path / "ida").context)
    leaf = there.getpeercert(binary_form=True)
    assert leaf is not None
    found = certificate.identify([leaf], server.authorities)
    assert found == certificate.Identity("ida", frozenset({"dev"}), frozenset())
    pki.make_ca(tmp_path / "twin", "SmallStack CA", identity_only=True)
    with pytest.raises(CertificateError, match="same name"):
        ServerCredentials(
            Pair(tmp_path / "s" / "cert.pem", tmp_path / "s" / "key.pem"),
            authority.directory / "ca.pem",
            tmp_path / "twin" / "identity-ca.pem",
        )


def test_the_best_pair_is_chosen(authority: pki.Authority, tmp_path: Path) -> None:
    pki.issue(authority, "a", days=900).write(tmp_path, "long")
    pki.issue(authority, "b", methods=["A.b", "C.d"]).write(tmp_path, "two")
    pki.issue(authority, "c", methods=["*.*"], days=9).write(tmp_path)
    (tmp_path / "lonely.key").touch()
    assert [pair.certificate.name for pair in find_pairs(tmp_path)] == [
        "cert.pem",
        "long.cert",
        "two.cert",
    ]
    assert ClientCredentials.load(tmp_path).pair.certificate.name == "cert.pem"
    (tmp_path / "key.pem").unlink()
    assert ClientCredentials.load(tmp_path).pair.certificate.name == "two.cert"
    (tmp_path / "two.key").unlink()
    assert ClientCredentials.load(tmp_path).pair.certificate.name == "long.cert"


def test_missing_broken_and_expired(
    authority: pki.Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoCredentialsError, match="smallstack pki issue"):
        ClientCredentials.load(tmp_path / "none")
    pki.issue(authority, "old", days=-1 + 1).write(tmp_path, "old")
    with pytest.raises(CredentialsExpiredError, match=r"old\.cert expired .* ago"):
        ClientCredentials.load(tmp_path)
    pair = Pair(*pki.issue(authority, "server", server=True, days=0).write(tmp_path / "s"))
    with caplog.at_level(logging.WARNING, "smallstack"):
        ServerCredentials(pair, authority.directory / "ca.pem")
    assert "expired" in caplog.text
    pki.issue(authority, "one").write(tmp_path / "x", "x")
    pki.issue(authority, "two").write(tmp_path / "y", "x")
    (tmp_path / "x" / "x.key").write_bytes((tmp_path / "y" / "x.key").read_bytes())
    with pytest.raises(CertificateError, match="its key is not"):
        ClientCredentials.load(tmp_path / "x")
    (tmp_path / "x" / "x.key").write_text("garbage")
    with pytest.raises(CertificateError, match=r"x\.cert"):
        ClientCredentials.load(tmp_path / "x")
    with pytest.raises(CertificateError, match=r"nothing\.pem"):
        ServerCredentials(pair, tmp_path / "nothing.pem")


def test_authority_errors(authority: pki.Authority, tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="make-ca"):
        pki.Authority.load(tmp_path)
    with pytest.raises(AuthorityError, match="there already"):
        pki.make_ca(authority.directory)
    for methods in (["StartVm"], ["a.b.c"], ["a. b"], [""], ["Hypervisor.["], ["A.b\\"]):
        with pytest.raises(AuthorityError, match=r"Service\.Method"):
            pki.issue(authority, "x", methods=methods)
    for name in ("", "a\nb", "a\0", "x" * 65):
        with pytest.raises(AuthorityError, match="1 to 64"):
            pki.issue(authority, name)
    for group in ("", "a\nb", "\0"):
        with pytest.raises(AuthorityError, match="is no group"):
            pki.issue(authority, "x", groups=[group])


def test_the_list_of_what_there_is(tmp_path: Path) -> None:
    authority = pki.make_ca(tmp_path)
    pki.make_ca(tmp_path, identity_only=True)
    pki.issue(authority, "zoe", server=True, methods=["A.b"])
    pki.issue(authority, "adam", groups=["dev"])
    assert [(one.common_name, kind) for one, kind in pki.listed(tmp_path)] == [
        ("SmallStack CA", "authority"),
        ("SmallStack Identity CA", "identity authority"),
        ("adam", "user"),
        ("zoe", "server"),
    ]


def _read(place: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(place.read_bytes())


def _extensions(place: Path) -> list[tuple[str, bool, bytes]]:
    return [
        (e.oid.dotted_string, e.critical, e.value.public_bytes()) for e in _read(place).extensions
    ]


@pytest.mark.parametrize("new_key", [False, True])
@pytest.mark.parametrize("identity_only", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_renewal_keeps_everything_but_the_times(
    tmp_path: Path, new_key: bool, identity_only: bool, server: bool
) -> None:
    ca = tmp_path / "ca"
    authority = pki.make_ca(ca)
    identities = pki.make_ca(ca, identity_only=True)
    place, key = pki.issue(
        identities if identity_only else authority,
        "älice",
        groups=["dev", "ops"],
        methods=["Hypervisor.*", "ImageServer.GetImage"],
        server=server,
        names=["hv1", "198.51.100.1"] if server else [],
        days=7,
    ).write(tmp_path / "own", "" if server else "alice")
    before, extensions, old_key = _read(place), _extensions(place), key.read_bytes()
    made = pki.renew(ca, place, new_key=new_key)
    after = _read(place)
    assert after.subject == before.subject
    assert after.issuer == before.issuer
    assert _extensions(place) == extensions
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc >= before.not_valid_after_utc
    assert after.not_valid_after_utc - before.not_valid_after_utc < timedelta(minutes=1)
    assert (key.read_bytes() != old_key) is new_key
    assert (after.public_key() != before.public_key()) is new_key
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    ClientCredentials(Pair(place, key))  # they match
    assert made == certificate.load(place)
    assert sorted(path.name for path in place.parent.iterdir()) == sorted([place.name, key.name])
    assert len(pki.listed(ca)) == 4
    longer = pki.renew(ca, place, days=30)
    assert longer.not_after - made.not_after > 22 * 86400


def test_what_cannot_be_renewed(authority: pki.Authority, tmp_path: Path) -> None:
    ca = authority.directory
    place, key = pki.issue(authority, "alice").write(tmp_path, "alice")
    good, good_key = place.read_bytes(), key.read_bytes()
    key.write_bytes(pki.issue(authority, "bob").key)
    with pytest.raises(RenewalError, match=r"alice\.key is not its key: renew it with a new key"):
        pki.renew(ca, place)
    assert place.read_bytes() == good
    pki.renew(ca, place, new_key=True)  # as after a kill between the two files
    ClientCredentials(Pair(place, key))
    place.write_bytes(good)
    key.write_text("garbage")
    with pytest.raises(RenewalError, match=r"alice\.key cannot be renewed"):
        pki.renew(ca, place)
    key.unlink()
    with pytest.raises(RenewalError, match=r"alice\.key cannot be renewed: No such file"):
        pki.renew(ca, place)
    key.write_bytes(good_key)
    (tmp_path / "alice.crt").write_bytes(good)
    with pytest.raises(RenewalError, match=r"name it cert\.pem or NAME\.cert"):
        pki.renew(ca, tmp_path / "alice.crt")
    place.write_text("garbage")
    with pytest.raises(RenewalError, match=r"alice\.cert cannot be renewed"):
        pki.renew(ca, place)
    with pytest.raises(RenewalError, match="No such file"):
        pki.renew(ca, tmp_path / "none.cert")
    twin = pki.make_ca(tmp_path / "twin")
    assert twin.certificate.subject == authority.certificate.subject
    foreign, _ = pki.issue(twin, "eve").write(tmp_path / "eve")
    with pytest.raises(ForeignCertificateError, match="was not signed by an authority in"):
        pki.renew(ca, foreign)
    with pytest.raises(ForeignCertificateError):
        pki.renew(tmp_path / "nothing here", foreign)


def test_a_key_that_cannot_be_written_changes_nothing(
    authority: pki.Authority, tmp_path: Path
) -> None:
    place, key = pki.issue(authority, "alice").write(tmp_path)
    good = place.read_bytes()
    key.unlink()
    (key / "in the way").mkdir(parents=True)
    with pytest.raises(RenewalError, match=r"cert\.pem cannot be renewed: .*irectory"):
        pki.renew(authority.directory, place, new_key=True)
    with pytest.raises(OSError, match="irectory"):
        pki.issue(authority, "bob").write(tmp_path)
    assert place.read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


def test_nothing_outlives_its_authority(tmp_path: Path) -> None:
    authority = pki.make_ca(tmp_path / "ca", days=10)
    place, _ = pki.issue(authority, "alice").write(tmp_path, "alice")
    end = authority.not_after.timestamp()
    assert end - 60 < certificate.load(place).not_after <= end
    pki.renew_ca(tmp_path / "ca", days=20)
    assert pki.renew(tmp_path / "ca", place, days=365).not_after > end + 9 * 86400
    pki.make_ca(tmp_path / "over", days=0)
    with pytest.raises(AuthorityError, match=r"it ended .* ago: renew it with `smallstack pki ren"):
        pki.issue(pki.Authority.load(tmp_path / "over"), "alice")


def test_a_renewed_authority_is_the_same(tmp_path: Path) -> None:
    """What it issued before and after is good with the old certificate and with the new one."""
    ca = tmp_path / "ca"
    authority = pki.make_ca(ca, days=30)
    pki.issue(authority, "before").write(tmp_path / "before")
    server = _server(authority, tmp_path / "s")
    renewed = pki.renew_ca(ca)
    assert renewed.not_after > authority.not_after
    assert stat.S_IMODE((ca / "ca.key").stat().st_mode) == 0o600
    pki.issue(renewed, "after").write(tmp_path / "after")
    for one in (server, _server(renewed, tmp_path / "t")):
        for user in ("before", "after"):
            handshake(one.context, ClientCredentials.load(tmp_path / user).context)
    with pytest.raises(AuthorityError, match="make-ca"):
        pki.renew_ca(ca, identity_only=True)
    pki.make_ca(tmp_path / "other")
    (ca / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(AuthorityError, match=r"ca\.key is not the key of ca\.pem"):
        pki.renew_ca(ca)


def test_an_authority_that_was_half_made_is_made(tmp_path: Path) -> None:
    """As after a kill between its two files."""
    pki.make_ca(tmp_path)
    (tmp_path / "ca.key").unlink()
    pki.make_ca(tmp_path)
    pki.issue(pki.Authority.load(tmp_path), "alice")


def test_repeated_groups_and_methods_are_there_once(
    authority: pki.Authority, tmp_path: Path
) -> None:
    place, _ = pki.issue(authority, "x", groups=["b", "a", "b"], methods=["A.b", "A.b"]).write(
        tmp_path
    )
    found = {oid: value for oid, _, value in _extensions(place)}
    assert found[certificate.GROUPS_OID] == certificate.encode_strings(["b", "a"])
    assert found[certificate.METHODS_OID] == certificate.encode_strings(["A.b"])
