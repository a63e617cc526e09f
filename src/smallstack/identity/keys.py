"""RSA keys, for those who ask for that kind: identity providers of the ecosystem."""

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

RSA_BITS = 3072
_EXPONENT = 65537


def make_rsa_key() -> bytes:
    """A new private key: PKCS#8 in PEM, not encrypted. Takes a processor up to some seconds."""
    key = rsa.generate_private_key(_EXPONENT, RSA_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key(private: bytes) -> bytes:
    """The public key of a private one in PEM: PKIX in PEM. Raises ValueError."""
    try:
        key = load_pem_private_key(private, None)
    except TypeError:
        raise ValueError("the key is encrypted: there must be no password") from None
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
