"""Just enough DER (ITU-T X.690) to read a certificate: tags, lengths, and the types in one.

Written out because the alternative costs every client tool 24 ms of imports. It reads what TLS
has verified already, or the user's own files; it is strict all the same, and bounded by the input.
"""

from collections.abc import Iterator
from typing import NamedTuple

from smallstack.identity.errors import CertificateFormatError

BOOLEAN = 0x01
INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
T61_STRING = 0x14
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
BMP_STRING = 0x1E
SEQUENCE = 0x30
SET = 0x31


class Element(NamedTuple):
    """One tag-length-value; ``raw`` is all of it, ``content`` the value alone."""

    tag: int
    content: bytes
    raw: bytes


def elements(data: bytes) -> Iterator[Element]:
    """The elements of which ``data`` consists; raises CertificateFormatError."""
    at = 0
    while at < len(data):
        if len(data) - at < 2:
            raise CertificateFormatError(detail="an element is cut off")
        tag, length = data[at], data[at + 1]
        start = at + 2
        if tag & 0x1F == 0x1F:
            raise CertificateFormatError(detail="a tag has more than one byte")
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or len(data) - start < count:
                raise CertificateFormatError(detail="a length is malformed")
            length = int.from_bytes(data[start : start + count])
            if data[start] == 0 or length < 0x80:
                raise CertificateFormatError(detail="a length is not in its shortest form")
            start += count
        end = start + length
        if end > len(data):
            raise CertificateFormatError(detail="an element is longer than what holds it")
        yield Element(tag, data[start:end], data[at:end])
        at = end


def one(data: bytes, tag: int) -> bytes:
    """The content of the single element that ``data`` is; raises CertificateFormatError."""
    found = list(elements(data))
    if len(found) != 1 or found[0].tag != tag:
        raise CertificateFormatError(detail=f"a single element of type {tag:#x} is expected")
    return found[0].content


def text(element: Element) -> str:
    """The value of any string type X.520 allows in a name; raises CertificateFormatError."""
    encodings = {
        UTF8_STRING: "utf-8",
        PRINTABLE_STRING: "ascii",
        IA5_STRING: "ascii",
        T61_STRING: "latin-1",
        BMP_STRING: "utf-16-be",
    }
    if element.tag not in encodings:
        raise CertificateFormatError(detail=f"type {element.tag:#x} is no string")
    try:
        return element.content.decode(encodings[element.tag])
    except UnicodeDecodeError:
        raise CertificateFormatError(detail="a string does not suit its type") from None


def object_identifier(content: bytes) -> str:
    """Dotted form; raises CertificateFormatError."""
    if not content or content[-1] & 0x80:
        raise CertificateFormatError(detail="an object identifier is cut off")
    arcs: list[int] = []
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
