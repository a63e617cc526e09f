"""TLS without I/O: encrypted bytes in and out of two memory buffers, plain ones on our side.

Done here rather than by the loop: TLS can so start in the middle of a stream with bytes already
read, in either loop, and its alerts and limits are in our hands.
"""

import ssl
from typing import Final

SLICE: Final = 64 * 1024
"""Bytes encrypted at a time."""
RECORD: Final = 16 * 1024
"""Bytes in a record of TLS, and so of what is decrypted at a time (RFC 8446, section 5.1)."""


class TlsSession:
    """One side of a session. Whatever a method does, `outgoing` may have bytes for the peer."""

    __slots__ = ("_incoming", "_outgoing", "ready", "ssl")

    def __init__(self, context: ssl.SSLContext, server_side: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self.ready = False
        """Whether the handshake is over."""

    def feed(self, data: bytes | bytearray) -> None:
        """Bytes from the peer."""
        self._incoming.write(data)

    def outgoing(self) -> bytes:
        """Bytes that are to go to the peer now."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is over. Raises ssl.SSLError, OSError."""
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.ready = True
        return True

    def decrypt(self, into: bytearray) -> bool:
        """Append what was received; whether the peer has ended its side.

        Raises ssl.SSLError, OSError.
        """
        tls = self.ssl
        try:
            while data := tls.read(RECORD):
                into += data
                # Asking once more than needed ends in an exception, which costs more than a call.
                if not self._incoming.pending and not tls.pending():
                    return False
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        return True

    def encrypt(self, data: bytes) -> None:
        """Bytes for the peer. Raises ssl.SSLError, OSError."""
        if len(data) <= SLICE:
            self.ssl.write(data)
            return
        view = memoryview(data)
        while view:
            self.ssl.write(view[:SLICE])
            view = view[SLICE:]

    def farewell(self) -> None:
        """Say that no more will come; the peer's own farewell is not waited for."""
        try:
            self.ssl.unwrap()
        except (ssl.SSLError, OSError, ValueError):
            pass


def tls_reason(error: BaseException) -> str:
    """A few words for what TLS objects to."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ").removeprefix("tlsv1 alert ")
    return str(error) or type(error).__name__
