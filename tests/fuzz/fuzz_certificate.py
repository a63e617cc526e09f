"""A certificate as a peer shows it: who it makes its holder, and what its patterns permit.

TLS has verified its signatures by then, so the bytes are those of some authority, whose software
need not be ours.
"""

from smallstack.identity import certificate
from smallstack.identity.decision import is_pattern, match
from smallstack.identity.errors import CertificateFormatError


def one_input(data: bytes) -> None:
    """Nothing but CertificateFormatError for bad bytes; what is read is whole and consistent."""
    try:
        for one in certificate.parse_pem(data):
            assert one
    except CertificateFormatError:
        pass
    try:
        found = certificate.parse(data)
    except CertificateFormatError:
        return
    assert found.subject in data
    assert found.issuer in data
    trusted = certificate.identify([data], frozenset({found.issuer}))
    assert trusted == (found.common_name, found.groups, found.methods)
    assert certificate.identify([data], frozenset()) == (
        found.common_name,
        found.groups,
        frozenset(),
    )
    for pattern in found.methods:
        permitted = match(pattern, "Hypervisor.StartVm")
        assert not permitted or is_pattern(pattern)
