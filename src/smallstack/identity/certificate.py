"""What a certificate says about its holder: user, groups, permitted methods (RFC 5280).

Groups and methods are extensions of Cloud-Foundations' ecosystem, each a SEQUENCE OF string
(UTF8String, PrintableString or IA5String), not critical:

=========================== ===========================================
1.3.6.1.4.1.9586.100.7.1    permitted methods, globs of Service.Method
1.3.6.1.4.1.9586.100.7.2    groups
=========================== ===========================================

Nothing here verifies a signature: TLS has, before these functions see a peer's chain.
"""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from smallstack.identity import der
from smallstack.identity.errors import CertificateError, CertificateFormatError
from smallstack.telemetry.errors import describe

METHODS_OID = "1.3.6.1.4.1.9586.100.7.1"
GROUPS_OID = "1.3.6.1.4.1.9586.100.7.2"
COMMON_NAME_OID = "2.5.4.3"

_STRINGS = {der.UTF8_STRING, der.PRINTABLE_STRING, der.IA5_STRING}
_PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----", re.ASCII
)


class Certificate(NamedTuple):
    """The parts of one certificate that matter here; times are Unix seconds."""

    common_name: str
    subject: bytes
    issuer: bytes
    not_before: int
    not_after: int
    groups: frozenset[str]
    methods: frozenset[str]


class Identity(NamedTuple):
    """Who a verified chain makes its holder."""

    username: str
    groups: frozenset[str]
    methods: frozenset[str]


def parse(data: bytes) -> Certificate:
    """One certificate in DER; raises CertificateFormatError.

    A permitted method without exactly one dot makes the certificate invalid.
    """
    outer = list(der.elements(der.one(data, der.SEQUENCE)))
    if not outer or outer[0].tag != der.SEQUENCE:
        raise CertificateFormatError(detail="its body is missing")
    fields = list(der.elements(outer[0].content))
    if fields and fields[0].tag == 0xA0:  # the version
        del fields[0]
    if [field.tag for field in fields[:6]] != [der.INTEGER, *[der.SEQUENCE] * 5]:
        raise CertificateFormatError(detail="its fields are not those of RFC 5280")
    _, _, issuer, validity, subject, _ = fields[:6]
    times = [_time(element) for element in der.elements(validity.content)]
    if len(times) != 2:
        raise CertificateFormatError(detail="its validity is not two times")
    extensions = _extensions(fields[6:])
    methods = _strings(extensions, METHODS_OID)
    for method in methods:
        if method.count(".") != 1:
            raise CertificateFormatError(detail=f"permitted method {method!r} needs one dot")
    return Certificate(
        common_name=_common_name(subject.content),
        subject=subject.raw,
        issuer=issuer.raw,
        not_before=times[0],
        not_after=times[1],
        groups=frozenset(_strings(extensions, GROUPS_OID)),
        methods=frozenset(methods),
    )


def parse_pem(data: bytes) -> list[bytes]:
    """The DER of every certificate in a PEM text (RFC 7468); raises CertificateFormatError."""
    try:
        return [
            base64.b64decode(b"".join(m[1].split()), validate=True) for m in _PEM.finditer(data)
        ]
    except ValueError:
        raise CertificateFormatError(detail="its base64 is broken") from None


def load(path: Path) -> Certificate:
    """The first certificate of a PEM file; raises CertificateError."""
    found = load_all(path)
    if not found:
        raise CertificateError(place=path, detail="the file holds no certificate")
    return found[0]


def load_all(path: Path) -> list[Certificate]:
    """All certificates of a PEM file, in its order; raises CertificateError."""
    try:
        return [parse(data) for data in parse_pem(path.read_bytes())]
    except FileNotFoundError as error:
        detail = (
            "there is no such file; make it with `smallstack pki` (make-ca for an authority, "
            "issue --server for a daemon), or name another"
        )
        raise CertificateError(place=path, detail=detail) from error
    except (OSError, CertificateFormatError) as error:
        raise CertificateError(place=path, detail=describe(error)) from error


def subjects(path: Path) -> frozenset[bytes]:
    """The subjects of all certificates of a PEM file: the authorities it names."""
    return frozenset(one.subject for one in load_all(path))


def identify(chain: Sequence[bytes], authorities: frozenset[bytes] | None = None) -> Identity:
    """Who the holder of a verified chain is; ``chain`` is DER, the leaf first.

    User and groups come from the first certificate that has them; methods are the union over the
    chain, but count only if the leaf was issued by one of ``authorities`` (subjects), unless
    that is None. Raises CertificateFormatError.
    """
    return _identify(tuple(chain), authorities)


@lru_cache(1024)  # a user has thousands of connections, and one certificate
def _identify(chain: tuple[bytes, ...], authorities: frozenset[bytes] | None) -> Identity:
    username = ""
    groups: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    certificates = [parse(data) for data in chain]
    for certificate in certificates:
        username = username or certificate.common_name
        groups = groups or certificate.groups
        methods |= certificate.methods
    if authorities is not None and certificates and certificates[0].issuer not in authorities:
        methods = frozenset()
    return Identity(username, groups, methods)


def encode_strings(values: Sequence[str]) -> bytes:
    """The value of a methods or groups extension: a SEQUENCE OF UTF8String."""
    return _tlv(der.SEQUENCE, b"".join(_tlv(der.UTF8_STRING, v.encode()) for v in values))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def _common_name(name: bytes) -> str:
    """The last common name of a distinguished name, "" when it has none."""
    found = ""
    for relative in der.elements(name):
        for attribute in der.elements(relative.content):
            parts = list(der.elements(attribute.content))
            if len(parts) != 2 or parts[0].tag != der.OBJECT_IDENTIFIER:
                raise CertificateFormatError(detail="its subject is malformed")
            if der.object_identifier(parts[0].content) == COMMON_NAME_OID:
                found = der.text(parts[1])
    return found


def _extensions(fields: Sequence[der.Element]) -> dict[str, bytes]:
    """Value by object identifier; the first of equals counts."""
    found: dict[str, bytes] = {}
    for field in fields:
        if field.tag != 0xA3:
            continue
        for extension in der.elements(der.one(field.content, der.SEQUENCE)):
            parts = list(der.elements(extension.content))
            if len(parts) == 3 and parts[1].tag == der.BOOLEAN:
                del parts[1]
            if [part.tag for part in parts] != [der.OBJECT_IDENTIFIER, der.OCTET_STRING]:
                raise CertificateFormatError(detail="an extension is malformed")
            found.setdefault(der.object_identifier(parts[0].content), parts[1].content)
    return found


def _strings(extensions: dict[str, bytes], oid: str) -> list[str]:
    if oid not in extensions:
        return []
    values = []
    for element in der.elements(der.one(extensions[oid], der.SEQUENCE)):
        if element.tag not in _STRINGS:
            raise CertificateFormatError(detail=f"extension {oid} holds something but strings")
        values.append(der.text(element))
    return values


def _time(element: der.Element) -> int:
    """Unix seconds of a UTCTime or GeneralizedTime in the forms RFC 5280 allows."""
    value = element.content
    if element.tag == der.UTC_TIME and re.fullmatch(rb"\d{12}Z", value):
        year = int(value[:2])
        value = b"%d" % (1900 + year if year >= 50 else 2000 + year) + value[2:]
    elif element.tag != der.GENERALIZED_TIME or not re.fullmatch(rb"\d{14}Z", value):
        raise CertificateFormatError(detail="its validity is not in a form of RFC 5280")
    parts = [int(value[at : at + 2]) for at in range(4, 14, 2)]
    month, day, hour, minute, second = parts
    try:
        moment = datetime(int(value[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise CertificateFormatError(detail="its validity is no time") from None
    return int(moment.timestamp())
