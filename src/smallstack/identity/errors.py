"""What can be wrong with certificates, keys and the rights in them."""

from smallstack.telemetry.errors import SmallStackError


class CertificateError(SmallStackError):
    """certificate {place} cannot be used: {detail}"""


class CertificateFormatError(SmallStackError):
    """not a valid certificate: {detail}"""


class NoCredentialsError(SmallStackError):
    """no certificate in {directory}: make one with `smallstack pki issue`, or use plain mode if the server has no TLS"""  # noqa: E501


class CredentialsExpiredError(SmallStackError):
    """certificate {place} {detail}: renew it, for instance with `smallstack pki renew`"""


class CertificateExistsError(SmallStackError):
    """certificate {place} exists: renew it with `smallstack pki renew`, or make another in its place with --replace"""  # noqa: E501


class RenewalError(SmallStackError):
    """certificate {place} cannot be renewed: {detail}"""


class ForeignCertificateError(RenewalError):
    """certificate {place} was not signed by an authority in {directory}"""


class NoPairError(SmallStackError):
    """no certificate and key in {directory}: they are called cert.pem and key.pem, or NAME.cert and NAME.key"""  # noqa: E501


class AuthorityError(SmallStackError):
    """certificate authority {directory}: {detail}"""


class RoleError(SmallStackError):
    """{what} cannot be a VM's: {detail}"""
