"""Who is at the other end of a TLS session."""

from typing import Any

from smallstack.identity import certificate
from smallstack.identity.credentials import ServerCredentials
from smallstack.identity.peer import Peer
from smallstack.srpc.connection import Connection


def identify(conn: Connection, credentials: ServerCredentials) -> Peer:
    """Who is at the other end of a TLS handshake that ended, and was made with ``credentials``.

    Without a certificate (pages only) the peer has no name and ``encrypted`` is False, so
    that nothing takes it for an authenticated one. Raises CertificateFormatError.
    """
    chain = _verified_chain(conn.tls)
    if not chain:
        return Peer(remote_host=conn.remote_host, remote_port=conn.remote_port)
    found = certificate.identify(chain, credentials.authorities)
    return Peer(
        username=found.username,
        groups=found.groups,
        methods=found.methods,
        encrypted=True,
        remote_host=conn.remote_host,
        remote_port=conn.remote_port,
    )


def _verified_chain(tls: Any) -> list[bytes]:
    """DER, the leaf first. Before Python 3.13 the chain has only an inner interface."""
    if tls is None:
        return []
    if hasattr(tls, "get_verified_chain"):
        return list(tls.get_verified_chain())
    inner = tls._sslobj
    chain = inner.get_verified_chain() or []
    if chain:
        import _ssl

        return [one.public_bytes(_ssl.ENCODING_DER) for one in chain]
    leaf = tls.getpeercert(binary_form=True)
    return [leaf] if leaf else []
