"""What makes a VM somebody: its keys, and what is right of certificates for them; no I/O.

Keys are made once for a VM: RSA of 3072 bits and Ed25519, PKCS#8 in PEM, the latter for SSH in
OpenSSH's own format too (PROTOCOL.key). Certificates are X.509 in PEM (RFC 5280, 8410), and
OpenSSH's in one line (PROTOCOL.certkeys). Times are Unix seconds. Slow to import, and some
functions take milliseconds, `new_keys` up to seconds: in threads.
"""

import base64
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificate,
    load_pem_private_key,
    load_ssh_public_identity,
)
from cryptography.x509.oid import NameOID

from smallstack.identity.errors import RoleError
from smallstack.identity.keys import make_rsa_key
from smallstack.telemetry.errors import describe

MAX_PEM = 64 * 1024
"""Bytes of a certificate, its chain or a key."""
PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


class Holder(NamedTuple):
    """Whose a certificate is, and from when to when."""

    name: str
    begin: int
    end: int


class Keys(NamedTuple):
    """Private keys of one VM, in PEM."""

    rsa: bytes
    ed25519: bytes
    ed25519_ssh: bytes


def new_keys() -> Keys:
    """Fresh ones."""
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ssh = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return Keys(make_rsa_key(), pem, ssh)


def public_of(private: bytes) -> PublicKey:
    """The public key of a private one in PEM. Raises RoleError."""
    if len(private) > MAX_PEM:
        raise RoleError(what="the key", detail=f"it has more than {MAX_PEM} bytes")
    try:
        key = load_pem_private_key(private, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise RoleError(what="the key", detail="it is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RoleError(what="the key", detail="it is no private key in PEM") from None
    public = key.public_key()
    if not isinstance(public, PublicKey):
        raise RoleError(what="the key", detail="use RSA, Ed25519 or an elliptic curve")
    return public


def pem_of(public: PublicKey) -> bytes:
    """PKIX in PEM."""
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def base64_of(public: PublicKey) -> str:
    """PKIX in DER, in base64 for URLs without padding, as providers take it."""
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(der).rstrip(b"=").decode()


def ssh_line_of(public: PublicKey) -> bytes:
    """As ``authorized_keys`` has it."""
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def check_certificate(pem: bytes, public: PublicKey, now: float, what: str) -> Holder:
    """Whose an X.509 certificate for this key is. Raises RoleError, which names ``what``."""
    if len(pem) > MAX_PEM:
        raise RoleError(what=what, detail=f"it has more than {MAX_PEM} bytes")
    try:
        found = x509.load_pem_x509_certificates(pem)[0]
        same = found.public_key() == public
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise RoleError(what=what, detail=f"it is none in PEM: {describe(error)}") from None
    if not same:
        raise RoleError(what=what, detail="it is for another key")
    name = str(names[0].value) if names else ""
    if not name or not name.isprintable():
        raise RoleError(what=what, detail="it names nobody")
    end = int(found.not_valid_after_utc.timestamp())
    if end <= now:
        raise RoleError(what=what, detail="it has expired")
    return Holder(name, int(found.not_valid_before_utc.timestamp()), end)


def check_ssh_certificate(line: bytes, public: PublicKey, now: float) -> None:
    """Whether this is one of OpenSSH's for this key. Raises RoleError."""
    what = "the SSH certificate"
    try:
        found = load_ssh_public_identity(line)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RoleError(what=what, detail=f"it is none: {describe(error)}") from None
    if not isinstance(found, SSHCertificate):
        raise RoleError(what=what, detail="it is a key without a certificate")
    if found.public_key() != public:
        raise RoleError(what=what, detail="it is for another key")
    if found.valid_before <= now:
        raise RoleError(what=what, detail="it has expired")
