"""RSA keys, for those who ask for that kind: identity providers of the ecosystem."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
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


def load_rsa_key(private: bytes) -> rsa.RSAPrivateKey:
    """A key that `make_rsa_key` made: nobody else writes that file, so it is not proved again.

    Raises ValueError, TypeError.
    """
    try:
        key = load_pem_private_key(private, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise ValueError("the key is encrypted: there must be no password") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("it is no RSA key")
    return key


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    """Its public half: PKIX in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sign(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """The signature of some bytes: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017). Some milliseconds."""
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
