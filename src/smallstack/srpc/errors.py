"""What can go wrong with a protocol: the peer's fault, or ours."""

from smallstack.telemetry.errors import SmallStackError


class RemoteProtocolError(SmallStackError):
    """the peer sent something that is not valid: {what}"""


class LocalProtocolError(SmallStackError):
    """cannot send this: {what}"""


class GobError(RemoteProtocolError):
    """the peer sent a gob stream that is not valid: {what}"""


class JsonError(RemoteProtocolError):
    """the peer sent JSON that is not valid: {what}"""


class LineTooLongError(RemoteProtocolError):
    """the peer sent a line of more than {limit} bytes"""


class ConnectionClosedError(SmallStackError):
    """{peer} closed the connection: {detail}"""


class PeerStalledError(SmallStackError):
    """{peer} sent or took next to nothing for {seconds:.0f} s in the middle of a call"""


class TlsError(SmallStackError):
    """TLS with {peer} failed: {detail}"""


class ConnectError(SmallStackError):
    """cannot connect to {address}: {detail}"""


class NoEndpointError(ConnectError):
    """{address} has no endpoint for this: {detail}"""


class BadCertificateError(ConnectError):
    """{address} does not accept this client's certificate: {detail}"""


class CertificateRequiredError(ConnectError):
    """{address} demands TLS with a client certificate: {detail}"""


class RpcError(SmallStackError):
    """{text}"""

    def __init__(self, text: str) -> None:
        """``text`` is what a handler tells the caller: one line."""
        super().__init__(text=text)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.fields["text"],))


class CallError(SmallStackError):
    """{method}: {text}"""


class AccessDeniedError(CallError):
    """{method}: {text}: your certificate lacks the right to call it"""


class InsecureServerError(SmallStackError):
    """a server needs certificates, or must be told to be insecure (no TLS, all is permitted)"""
