"""Keys and certificates on disk, made into TLS contexts: a client's directory, a server's files.

A client's directory (``~/.ssl``) holds pairs ``X.key``/``X.cert`` and ``key.pem``/``cert.pem``.
Clients do not verify servers unless given an authority: in this ecosystem trust runs from client
to server only, and servers' certificates are often self-signed. Servers always demand a client
certificate that an authority signed. TLS is 1.2 at least; sessions are never resumed, because a
resumed session has no verified chain to read rights from.
"""

import logging
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from smallstack.identity import certificate
from smallstack.identity.errors import (
    CertificateError,
    CredentialsExpiredError,
    NoCredentialsError,
)
from smallstack.telemetry.errors import describe

DEFAULT_DIRECTORY = Path("~/.ssl")
_log = logging.getLogger("smallstack.identity")


class Pair(NamedTuple):
    """The files of one certificate (chain) and its key, in PEM."""

    certificate: Path
    key: Path


class ClientCredentials:
    """What a client shows to servers.

    ``pair`` is the certificate in use, ``others`` what can be shown to a server that does not
    accept it: which authorities a server trusts is only seen there.
    """

    __slots__ = ("_authority", "context", "others", "pair")

    def __init__(self, pair: Pair, authority: Path | None = None) -> None:
        """With ``authority``, a PEM file, servers are verified against it (not by their names).

        Raises CertificateError, CredentialsExpiredError.
        """
        self.pair = pair
        self.others: list[Pair] = []
        self._authority = authority
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        if authority is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            _load_authority(self.context, authority)
        _check_times(pair.certificate)
        _load_chain(self.context, pair)

    @classmethod
    def load(
        cls, directory: Path = DEFAULT_DIRECTORY, authority: Path | None = None
    ) -> "ClientCredentials":
        """The best pair of a directory: most powers, then longest life.

        One that cannot be used is passed over if there is another. Raises NoCredentialsError when
        there is none, CertificateError, CredentialsExpiredError.
        """
        pairs = find_pairs(directory.expanduser())
        if not pairs:
            raise NoCredentialsError(directory=directory)
        if len(pairs) == 1:
            return cls(pairs[0], authority)
        best, *others = _ranked(pairs)
        made = cls(best, authority)
        made.others = others
        return made

    def next(self) -> "ClientCredentials | None":
        """The same with the next one of ``others``; None when there is no more that can be used."""
        for at, pair in enumerate(self.others, 1):
            try:
                made = ClientCredentials(pair, self._authority)
            except (CertificateError, CredentialsExpiredError) as error:
                _log.info("%s", error)
                continue
            made.others = self.others[at:]
            return made
        return None


class ServerCredentials:
    """A server's certificate and whom it trusts.

    ``context`` demands a client certificate; ``page_context`` takes one if it is offered, for
    browsers and health checks. ``authorities`` are the subjects whose certificates' permitted
    methods count, None when every trusted one's do. ``certificates`` are its own (chain) and those
    of the authorities, with the file each is in.
    """

    __slots__ = ("authorities", "certificates", "context", "page_context")

    def __init__(self, pair: Pair, authority: Path, identity_authority: Path | None = None) -> None:
        """``identity_authority`` may vouch for users and groups, not for methods.

        Raises CertificateError. A certificate out of its time is used all the same, with a
        warning: clients do not look at it, and without its daemon a machine is out of reach.
        """
        try:
            _check_times(pair.certificate)
        except CredentialsExpiredError as error:
            _log.warning("%s", error)
        trusted = [authority] + ([identity_authority] if identity_authority else [])
        known = {place: certificate.load_all(place) for place in (pair.certificate, *trusted)}
        self.certificates: tuple[tuple[Path, certificate.Certificate], ...] = tuple(
            (place, one) for place, found in known.items() for one in found
        )
        self.authorities: frozenset[bytes] | None = None
        if identity_authority is not None:
            self.authorities = frozenset(one.subject for one in known[authority])
            if any(one.subject in self.authorities for one in known[identity_authority]):
                detail = f"it has the same name as one in {authority}: methods could not be told"
                raise CertificateError(place=identity_authority, detail=detail)
        self.context = _server_context(pair, trusted, ssl.CERT_REQUIRED)
        self.page_context = _server_context(pair, trusted, ssl.CERT_OPTIONAL)

    @classmethod
    def load(cls, directory: Path) -> "ServerCredentials":
        """From ``cert.pem``, ``key.pem``, ``ca.pem`` and, if it is there, ``identity-ca.pem``."""
        identity = directory / "identity-ca.pem"
        return cls(
            Pair(directory / "cert.pem", directory / "key.pem"),
            directory / "ca.pem",
            identity if identity.exists() else None,
        )


def find_pairs(directory: Path) -> list[Pair]:
    """Every pair of a directory, by name; none when the directory does not exist."""
    try:
        names = {path.name for path in directory.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CertificateError(place=directory, detail=describe(error)) from error
    places = (directory / name for name in sorted(names))
    pairs = [Pair(place, key) for place in places if (key := key_beside(place))]
    return [pair for pair in pairs if pair.key.name in names]


def key_beside(place: Path) -> Path | None:
    """Where the key of the certificate ``cert.pem`` or ``X.cert`` is; None for another name."""
    if place.name == "cert.pem":
        return place.with_name("key.pem")
    if place.name.endswith(".cert"):
        return place.with_name(f"{place.name.removesuffix('.cert')}.key")
    return None


def _ranked(pairs: list[Pair]) -> list[Pair]:
    """Those that can be used, best first; raises what stands in the way of the last when none."""
    found: list[tuple[tuple[bool, int, int], Pair]] = []
    failure: CertificateError | CredentialsExpiredError | None = None
    for pair in pairs:
        try:
            _check_times(pair.certificate)
            known = certificate.load(pair.certificate)
        except (CertificateError, CredentialsExpiredError) as error:
            _log.info("%s", error)
            failure = error
        else:
            rank = ("*.*" in known.methods, len(known.methods), known.not_after)
            found.append((rank, pair))
    if not found and failure is not None:
        raise failure
    return [pair for _, pair in sorted(found, key=lambda one: one[0], reverse=True)]


def _check_times(place: Path) -> None:
    known = certificate.load(place)
    now = time.time()
    if now < known.not_before:
        detail = f"will not be valid for {span(known.not_before - now)}"
        raise CredentialsExpiredError(place=place, detail=detail)
    if now > known.not_after:
        detail = f"expired {span(now - known.not_after)} ago"
        raise CredentialsExpiredError(place=place, detail=detail)


def span(seconds: float) -> str:
    """A length of time in words, rounded down."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} seconds"


def _server_context(pair: Pair, trusted: list[Path], mode: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = mode
    _load_chain(context, pair)
    for place in trusted:
        _load_authority(context, place)
    return context


def _load_chain(context: ssl.SSLContext, pair: Pair) -> None:
    try:
        # A password function that gives nothing: an encrypted key must fail, not ask the terminal.
        context.load_cert_chain(pair.certificate, pair.key, password=lambda: b"")
    except ssl.SSLError as error:
        detail = error.reason or str(error)
        if error.reason == "KEY_VALUES_MISMATCH":
            detail = f"its key is not {pair.key}"
        raise CertificateError(place=pair.certificate, detail=detail) from error
    except OSError as error:
        raise CertificateError(
            place=pair.certificate, detail=f"{describe(error)} ({pair.key})"
        ) from error


def _load_authority(context: ssl.SSLContext, place: Path) -> None:
    try:
        context.load_verify_locations(place)
    except (ssl.SSLError, OSError) as error:
        detail = (error.reason if isinstance(error, ssl.SSLError) else None) or describe(error)
        raise CertificateError(place=place, detail=detail) from error
