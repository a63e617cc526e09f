"""What can be wrong with certificates, keys and the rights in them."""

from smallstack.telemetry.errors import SmallStackError


class CertificateError(SmallStackError):
    """certificate {place} cannot be used: {detail}"""


class CertificateFormatError(SmallStackError):
    """not a valid certificate: {detail}"""


class NoCredentialsError(SmallStackError):
    """no certificate in {directory}: make one with `smallstack pki issue`, or use plain mode if the server has no TLS"""  # noqa: E501


class CredentialsExpiredError(SmallStackError):
    """certificate {place} {detail}: renew it, for instance with `smallstack pki issue`"""


class AuthorityError(SmallStackError):
    """certificate authority {directory}: {detail}"""
