"""The other end of a connection: who it is and where it comes from."""

import msgspec


class Peer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One authenticated, or anonymous, caller."""

    username: str = ""
    """The certificate's common name; empty without a certificate."""
    groups: frozenset[str] = frozenset()
    methods: frozenset[str] | None = frozenset()
    """Patterns of permitted methods; None permits all (a server that was told to be insecure)."""
    remote_host: str = ""
    remote_port: int = 0
    encrypted: bool = False
    allow_method_powers: bool = True
    """False when the client asked for ``doNotUseMethodPowers``."""
    have_method_access: bool = False
    """Whether this call was granted by method powers rather than by being public."""

    @property
    def is_loopback(self) -> bool:
        """Whether the connection came from this machine's loopback."""
        return is_loopback(self.remote_host)

    def __str__(self) -> str:
        """``user@host`` for log lines."""
        return f"{self.username or '(nobody)'}@{self.remote_host or '(local)'}"


def without_powers(peer: Peer) -> Peer:
    """The same caller, for what powers do not pass over."""
    return msgspec.structs.replace(peer, have_method_access=False)


def is_loopback(host: str) -> bool:
    """Whether ``host``, as getpeername gives it, is 127.0.0.0/8, ::1 or such an IPv4 in IPv6."""
    return host.removeprefix("::ffff:").startswith("127.") or host == "::1"
