"""Our own reading of certificates, held to the cryptography package's."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from smallstack.identity import certificate, der
from smallstack.identity.errors import CertificateError, CertificateFormatError

KEY = ec.generate_private_key(ec.SECP256R1())
METHODS = x509.ObjectIdentifier(certificate.METHODS_OID)
GROUPS = x509.ObjectIdentifier(certificate.GROUPS_OID)


def _make(
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ((x509.NameOID.COMMON_NAME, "alice"),),
    issuer: str = "ca",
    extensions: Sequence[tuple[x509.ObjectIdentifier, bytes]] = (),
    end: datetime = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, value) for oid, value in subject]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=9000))
        .not_valid_after(end)
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_agrees_with_cryptography() -> None:
    data = _make(
        subject=(
            (x509.NameOID.ORGANIZATION_NAME, "Örg"),
            (x509.NameOID.COMMON_NAME, "älice"),
            (x509.NameOID.EMAIL_ADDRESS, "a@example.com"),
        ),
        extensions=[
            (METHODS, certificate.encode_strings(["Hypervisor.StartVm", "ImageServer.*"])),
            (GROUPS, certificate.encode_strings(["dev", "ops"])),
        ],
    )
    theirs = x509.load_der_x509_certificate(data)
    ours = certificate.parse(data)
    assert ours.common_name == "älice"
    assert ours.subject == theirs.subject.public_bytes()
    assert ours.issuer == theirs.issuer.public_bytes()
    assert ours.not_before == theirs.not_valid_before_utc.timestamp()
    assert ours.not_after == theirs.not_valid_after_utc.timestamp()
    assert ours.methods == {"Hypervisor.StartVm", "ImageServer.*"}
    assert ours.groups == {"dev", "ops"}


def test_generalized_time() -> None:
    data = _make(end=datetime(2060, 5, 6, tzinfo=UTC))
    assert certificate.parse(data).not_after == datetime(2060, 5, 6, tzinfo=UTC).timestamp()


def test_the_known_encoding() -> None:
    """The value upstream's programs were seen to accept."""
    value = bytes.fromhex("3023") + b"\x0c\x12Hypervisor.StartVm" + b"\x0c\x0dImageServer.*"
    assert certificate.encode_strings(["Hypervisor.StartVm", "ImageServer.*"]) == value


@pytest.mark.parametrize("tag", [der.UTF8_STRING, der.PRINTABLE_STRING, der.IA5_STRING])
def test_string_types(tag: int) -> None:
    data = _make(extensions=[(GROUPS, bytes((0x30, 5, tag, 3)) + b"dev")])
    assert certificate.parse(data).groups == {"dev"}


@pytest.mark.parametrize(
    ("oid", "value", "message"),
    [
        (GROUPS, b"\x31\x05\x0c\x03dev", "single element of type 0x30"),
        (GROUPS, b"\x30\x05\x04\x03dev", "something but strings"),
        (GROUPS, b"\x30\x09\x0c\x03dev", "longer than what holds it"),
        (GROUPS, b"", "single element"),
        (GROUPS, b"\x30\x03\x0c\x01\xff", "does not suit"),
        (METHODS, certificate.encode_strings(["StartVm"]), "'StartVm' needs one dot"),
        (METHODS, certificate.encode_strings(["a.b.c"]), "needs one dot"),
    ],
)
def test_bad_extensions(oid: x509.ObjectIdentifier, value: bytes, message: str) -> None:
    with pytest.raises(CertificateFormatError, match=message):
        certificate.parse(_make(extensions=[(oid, value)]))


def test_identity_of_a_chain() -> None:
    leaf = _make(subject=((x509.NameOID.ORGANIZATION_NAME, "o"),), issuer="middle")
    middle = _make(
        subject=((x509.NameOID.COMMON_NAME, "middle"),),
        extensions=[
            (METHODS, certificate.encode_strings(["A.*"])),
            (GROUPS, certificate.encode_strings(["g1"])),
        ],
    )
    root = _make(
        subject=((x509.NameOID.COMMON_NAME, "root"),),
        extensions=[
            (METHODS, certificate.encode_strings(["B.*"])),
            (GROUPS, certificate.encode_strings(["g2"])),
        ],
    )
    found = certificate.identify([leaf, middle, root])
    assert found == certificate.Identity("middle", frozenset({"g1"}), frozenset({"A.*", "B.*"}))
    issuer = certificate.parse(leaf).issuer
    assert certificate.identify([leaf, middle], frozenset({issuer})).methods == {"A.*"}
    other = certificate.parse(root).subject
    assert certificate.identify([leaf, middle], frozenset({other})).methods == frozenset()
    assert certificate.identify([]) == certificate.Identity("", frozenset(), frozenset())


def test_files(tmp_path: Path) -> None:
    place = tmp_path / "x.pem"
    with pytest.raises(CertificateError, match="no such file; make it with `smallstack pki`"):
        certificate.load(place)
    place.write_text("nothing here")
    with pytest.raises(CertificateError, match="holds no certificate"):
        certificate.load(place)
    place.write_text("-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(CertificateError, match="base64"):
        certificate.load(place)
    pems = [
        x509.load_der_x509_certificate(_make(issuer=i)).public_bytes(serialization.Encoding.PEM)
        for i in ("one", "two")
    ]
    place.write_bytes(b"".join(pems))
    assert certificate.load(place).common_name == "alice"
    assert len(certificate.subjects(place)) == 1


WHOLE = _make(extensions=[(METHODS, certificate.encode_strings(["Hypervisor.*"]))])


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 7))
def test_truncated(cut: int) -> None:
    with pytest.raises(CertificateFormatError):
        certificate.parse(WHOLE[:cut])


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_one_wrong_byte_never_escapes(at: int, byte: int) -> None:
    data = bytearray(WHOLE)
    data[at] = byte
    try:
        certificate.parse(bytes(data))
    except CertificateFormatError:
        pass


def test_object_identifiers() -> None:
    assert der.object_identifier(bytes.fromhex("2b06010401ca72640701")) == certificate.METHODS_OID
    assert der.object_identifier(bytes.fromhex("550403")) == "2.5.4.3"
    assert der.object_identifier(bytes.fromhex("883703")) == "2.999.3"
    for bad in (b"", b"\x2b\x86"):
        with pytest.raises(CertificateFormatError):
            der.object_identifier(bad)


@pytest.mark.parametrize("data", [b"\x30", b"\x30\x80", b"\x30\x81\x05", b"\x1f\x01", b"\x30\x85"])
def test_malformed_elements(data: bytes) -> None:
    with pytest.raises(CertificateFormatError):
        list(der.elements(data))
