"""A certificate authority of one's own: enough for a site, the demo and the tests.

A directory holds ``ca.pem`` and ``ca.key``, the authority for users, groups and methods; beside
them, if made, ``identity-ca.pem`` and ``identity-ca.key``, which vouch for users and groups only;
and under ``issued/`` a copy of every certificate given out. Keys are ECDSA on P-256: with it the
TLS handshake of client and server together was the fastest measured (1.28 ms, against 1.32 ms with
Ed25519 and 1.53 ms with RSA 2048; OpenSSL 3.0).

Only this module and keys.py load the cryptography package; clients never do.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smallstack.durable import replace_file, sync_directory
from smallstack.identity.certificate import (
    GROUPS_OID,
    METHODS_OID,
    Certificate,
    encode_strings,
    load,
)
from smallstack.identity.credentials import key_beside, span
from smallstack.identity.decision import is_pattern
from smallstack.identity.errors import AuthorityError, ForeignCertificateError, RenewalError
from smallstack.telemetry.errors import describe

DEFAULT_DAYS = 365
AUTHORITY_DAYS = 3650
_CLOCK_SKEW = timedelta(minutes=10)
_P256 = ec.SECP256R1()


class Issued(NamedTuple):
    """A new certificate and its key, in PEM; the key is not encrypted."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, stem: str = "") -> tuple[Path, Path]:
        """Write ``STEM.cert``/``STEM.key``, or ``cert.pem``/``key.pem``; the two places.

        The key's mode is 0600. What was there is replaced.
        """
        names = (f"{stem}.cert", f"{stem}.key") if stem else ("cert.pem", "key.pem")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        places = directory / names[0], directory / names[1]
        _replace_pair(places[0], self.certificate, places[1], self.key)
        return places

    def write_server(self, directory: Path, authority: "Authority") -> None:
        """Write what `ServerCredentials.load` reads: ``cert.pem key.pem ca.pem``.

        ``identity-ca.pem`` comes with them when the authority's directory has one.
        """
        self.write(directory)
        for name in ("ca.pem", "identity-ca.pem"):
            source = authority.directory / name
            if source.exists():
                replace_file(directory / name, source.read_bytes(), 0o644)


class Given(NamedTuple):
    """A certificate of an authority's directory; ``kind`` is one of KINDS."""

    certificate: Certificate
    kind: str


KINDS = ("authority", "identity authority", "server", "user")


class Authority:
    """A certificate authority: its certificate and key."""

    def __init__(
        self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.directory = directory
        self.certificate = certificate
        self.key = key

    @classmethod
    def load(cls, directory: Path, identity_only: bool = False) -> "Authority":
        """The authority of a directory; raises AuthorityError."""
        stem = _stem(identity_only)
        try:
            certificate = x509.load_pem_x509_certificate((directory / f"{stem}.pem").read_bytes())
            key = serialization.load_pem_private_key((directory / f"{stem}.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise AuthorityError(
                directory=directory,
                detail=f"{describe(error)}: make one with `{_command('make-ca', identity_only)}`",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(directory=directory, detail="its key is not an elliptic curve's")
        if key.public_key() != certificate.public_key():
            raise AuthorityError(
                directory=directory, detail=f"{stem}.key is not the key of {stem}.pem"
            )
        return cls(directory, certificate, key)

    @property
    def not_after(self) -> datetime:
        """When the authority ends, and with it what it has issued."""
        return self.certificate.not_valid_after_utc

    def sign(self, builder: x509.CertificateBuilder) -> bytes:
        """A certificate in PEM, with a copy kept under ``issued/``. Raises AuthorityError."""
        certificate = builder.sign(self.key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        kept = self.directory / "issued"
        try:
            kept.mkdir(exist_ok=True, mode=0o700)
            replace_file(kept / f"{certificate.serial_number:040x}.pem", pem, 0o644)
        except OSError as error:
            raise AuthorityError(directory=self.directory, detail=describe(error)) from error
        return pem

    def builder(
        self, subject: x509.Name, public: CertificatePublicKeyTypes, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        """The beginning of a certificate that ends with the authority if not before.

        Raises AuthorityError when that has ended.
        """
        if (left := (self.not_after - datetime.now(UTC)).total_seconds()) <= 0:
            raise AuthorityError(
                directory=self.directory,
                detail=f"it ended {span(-left)} ago: renew it with `smallstack pki renew-ca`",
            )
        return _builder(
            subject, self.certificate.subject, public, min(lifetime, timedelta(seconds=left))
        )


def make_ca(
    directory: Path,
    name: str = "",
    *,
    identity_only: bool = False,
    days: int = AUTHORITY_DAYS,
) -> Authority:
    """A new authority in ``directory``; raises AuthorityError if there is one already."""
    stem = _stem(identity_only)
    name = name or ("SmallStack Identity CA" if identity_only else "SmallStack CA")
    if (directory / f"{stem}.key").exists():
        longer = _command("renew-ca", identity_only)
        raise AuthorityError(
            directory=directory,
            detail=f"{stem}.key is there already: `{longer}` has it last longer",
        )
    key = ec.generate_private_key(_P256)
    subject = _common_name(directory, name)
    certificate = _self_signed(subject, key, days)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        replace_file(directory / f"{stem}.pem", pem, 0o644)
        replace_file(directory / f"{stem}.key", _key_pem(key), 0o600)  # the last: now it is there
    except OSError as error:
        raise AuthorityError(directory=directory, detail=describe(error)) from error
    return Authority(directory, certificate, key)


def renew_ca(
    directory: Path, *, identity_only: bool = False, days: int = AUTHORITY_DAYS
) -> Authority:
    """A later certificate of the same authority: same name, same key, so that what it has issued
    stays good. Raises AuthorityError."""
    former = Authority.load(directory, identity_only)
    certificate = _self_signed(former.certificate.subject, former.key, days)
    try:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        replace_file(directory / f"{_stem(identity_only)}.pem", pem, 0o644)
    except OSError as error:
        raise AuthorityError(directory=directory, detail=describe(error)) from error
    return Authority(directory, certificate, former.key)


def issue(
    authority: Authority,
    common_name: str,
    *,
    groups: Sequence[str] = (),
    methods: Sequence[str] = (),
    server: bool = False,
    names: Sequence[str] = (),
    days: int = DEFAULT_DAYS,
) -> Issued:
    """A new certificate for a user, or with ``server`` for a daemon.

    ``names`` are the server's host names and addresses. A daemon that calls others (a Hypervisor
    its image server) needs ``methods`` too, or it can only serve.
    Raises AuthorityError for an empty name, a method without exactly one dot or a host that is not
    ASCII.
    """
    for method in methods:
        if not re.fullmatch(r"[^.\s]+\.[^.\s]+", method) or not is_pattern(method):
            raise AuthorityError(
                directory=authority.directory,
                detail=f"method {method!r} is not Service.Method, such as 'Hypervisor.*'",
            )
    for group in groups:
        if not group or any(char < " " for char in group):
            raise AuthorityError(directory=authority.directory, detail=f"{group!r} is no group")
    key = ec.generate_private_key(_P256)
    subject = _common_name(authority.directory, common_name)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if server else []
    if not server or methods or groups:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    builder = (
        authority.builder(subject, key.public_key(), timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(authority, name) for name in names]),
            critical=False,
        )
    for oid, values in ((METHODS_OID, methods), (GROUPS_OID, groups)):
        if values:
            try:
                text = encode_strings([*dict.fromkeys(values)])  # each once
            except UnicodeEncodeError as error:
                raise AuthorityError(
                    directory=authority.directory, detail=f"{error.object!r} is not UTF-8"
                ) from None
            value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), text)
            builder = builder.add_extension(value, critical=False)
    return Issued(authority.sign(builder), _key_pem(key))


def renew(
    directory: Path, place: Path, *, days: int | None = None, new_key: bool = False
) -> Certificate:
    """Replace a certificate by a later one of the same subject and extensions; what it is now.

    ``place`` is the file of its PEM, its key is beside it (see `key_beside`) and stays unless
    there is to be a ``new_key``. Without ``days`` it lasts as long as the former one did. It has to
    be of an authority of ``directory``. Raises RenewalError, AuthorityError.

    With a new key, who is killed between the two files leaves a pair that does not match, which
    the same call puts right; a full disk changes neither.
    """
    try:
        former = x509.load_pem_x509_certificate(place.read_bytes())
        extensions = list(former.extensions)
    except (OSError, ValueError) as error:
        raise RenewalError(place=place, detail=describe(error)) from error
    authority = _issuer(directory, former)
    if authority is None:
        raise ForeignCertificateError(place=place, directory=directory)
    key_place = key_beside(place)
    if key_place is None:
        raise RenewalError(place=place, detail="name it cert.pem or NAME.cert, its key is sought")
    public = former.public_key()
    key = ec.generate_private_key(_P256) if new_key else None
    if key is not None:
        public = key.public_key()
    elif _public_key(key_place) != public:
        raise RenewalError(
            place=place, detail=f"{key_place} is not its key: renew it with a new key"
        )
    lifetime = former.not_valid_after_utc - former.not_valid_before_utc - _CLOCK_SKEW
    if days is not None:
        lifetime = timedelta(days=days)
    builder = authority.builder(former.subject, public, lifetime)
    for extension in extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = authority.sign(builder)
    try:
        if key is not None:
            _replace_pair(place, pem, key_place, _key_pem(key))
        else:
            replace_file(place, pem, 0o644)
    except OSError as error:
        raise RenewalError(place=place, detail=describe(error)) from error
    return load(place)


def _replace_pair(place: Path, pem: bytes, key_place: Path, key: bytes) -> None:
    """Replace both files or neither, but for a kill between them. Raises OSError."""
    staged = place.with_name(place.name + ".new")
    try:
        replace_file(staged, pem, 0o644)
        replace_file(key_place, key, 0o600)
        staged.rename(place)  # takes no space
        sync_directory(place.parent)
    finally:
        staged.unlink(missing_ok=True)


def _issuer(directory: Path, certificate: x509.Certificate) -> Authority | None:
    """The authority of a directory that has signed a certificate. Raises AuthorityError."""
    for identity_only in (False, True):
        if not (directory / f"{_stem(identity_only)}.pem").exists():
            continue
        authority = Authority.load(directory, identity_only)
        try:
            certificate.verify_directly_issued_by(authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def _public_key(place: Path) -> object:
    try:
        return serialization.load_pem_private_key(place.read_bytes(), None).public_key()
    except (OSError, ValueError, TypeError) as error:
        raise RenewalError(place=place, detail=describe(error)) from error


def listed(directory: Path) -> list[Given]:
    """The authorities of a directory and every certificate they have issued: the authorities
    first, then by name and end of life. Raises CertificateError."""
    found = []
    for kind, name in zip(KINDS[:2], ("ca.pem", "identity-ca.pem"), strict=True):
        if (directory / name).exists():
            found.append(Given(load(directory / name), kind))
    issued = [Given(load(place), _kind(place)) for place in (directory / "issued").glob("*.pem")]
    return found + sorted(
        issued, key=lambda one: (one.certificate.common_name, one.certificate.not_after)
    )


def _kind(place: Path) -> str:
    certificate = x509.load_pem_x509_certificate(place.read_bytes())
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "user"
    return "server" if ExtendedKeyUsageOID.SERVER_AUTH in usages else "user"


def _command(name: str, identity_only: bool) -> str:
    return f"smallstack pki {name}{' --identity' if identity_only else ''}"


def _stem(identity_only: bool) -> str:
    return "identity-ca" if identity_only else "ca"


def _builder(
    subject: x509.Name, issuer: x509.Name, public: CertificatePublicKeyTypes, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _self_signed(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.Certificate:
    public = key.public_key()
    return (
        _builder(subject, subject, public, timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(authority: Authority, name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9*._-]+", name):
        raise AuthorityError(
            directory=authority.directory, detail=f"host {name!r} is no address and no ASCII name"
        )
    return x509.DNSName(name)


def _common_name(directory: Path, name: str) -> x509.Name:
    try:
        if name.isprintable():
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        pass
    raise AuthorityError(
        directory=directory, detail="a name has 1 to 64 bytes of UTF-8 (X.520), all printable"
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
