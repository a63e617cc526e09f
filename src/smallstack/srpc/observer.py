"""What a server reports of itself as it goes."""

from typing import Protocol


class Observer(Protocol):
    """Whom it reports to; all methods return at once."""

    def connection(self, opened: bool) -> None:
        """A connection was opened (after its handshake) or has closed."""

    def rejected(self, reason: str) -> None:
        """A connection was turned away: a word such as ``tls``, ``404``, ``timeout``."""

    def denied(self, method: str) -> None:
        """A call was refused for want of rights."""

    def delayed(self) -> None:
        """A call has to wait: its user calls too often."""

    def started(self, method: str) -> None:
        """A call was let through to its handler."""

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """Its handler has ended: ``ok``, ``error`` (told to the caller) or ``failed``."""


class NoObserver:
    """Reports to nobody."""

    def connection(self, opened: bool) -> None:
        """Nothing."""

    def rejected(self, reason: str) -> None:
        """Nothing."""

    def denied(self, method: str) -> None:
        """Nothing."""

    def delayed(self) -> None:
        """Nothing."""

    def started(self, method: str) -> None:
        """Nothing."""

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """Nothing."""
