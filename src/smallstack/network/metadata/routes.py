"""What the metadata service answers; no I/O.

Paths (the paper's Appendix 1)::

    /datasource/SmallStack                      true
    /latest/is-externally-patchable             true
    /latest/dynamic/epoch-time                  <seconds>.<nanoseconds, 9 digits>
    /latest/dynamic/instance-identity/document  the VM's record, JSON indented by four spaces
    …/instance-identity/signature               of that document, by the Hypervisor's key; base64
    …/instance-identity/X.509-certificate, …    who the VM is, and its keys: `CREDENTIALS`; or 404
    /latest/user-data                           the VM's user data, byte for byte, or 404
    /latest/api/token                           by PUT: a token, see tokens
    /nocloud/meta-data                          instance id and host name, JSON (and so YAML)
    /nocloud/user-data                          the user data again, empty if there are none
    /nocloud/vendor-data                        empty
    a beginning of one of these                 what can follow, up to the next slash, one per line
    /*                                          all of these, without their first slash

Those of ``nocloud`` are what cloud-init's data source of that name asks for below the URL that it
finds in the SMBIOS serial number; it takes a 404 for a passing failure and asks again and again.

Anything else, and any caller that is not a VM, gets 404 with an empty body. But for that of the
token the method does not matter, and headers only where they show a token: one that is no good is
refused, and `Rules.tokens_for` says what cannot be had without.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from smallstack.network.metadata.document import identity_document
from smallstack.network.metadata.http import FORWARDED_FOR, TOKEN, TOKEN_SECONDS, Request
from smallstack.network.metadata.tokens import Tokens, seconds_asked
from smallstack.proto.vm import VmInfo

TEXT: Final = "text/plain; charset=utf-8"
BINARY: Final = "application/octet-stream"
NANOSECONDS: Final = 1_000_000_000
NOCLOUD: Final = "/nocloud"
IDENTITY: Final = "/latest/dynamic/instance-identity"
TOKEN_PATH: Final = "/latest/api/token"

CERTIFICATE: Final = "identity.cert"
KEY: Final = "identity.key"
RSA_SSH_CERTIFICATE: Final = "identity-RSA.SSH-cert"
ED25519_CERTIFICATE: Final = "identity-Ed25519.X509-cert"
ED25519_KEY: Final = "identity-Ed25519.X509-key"
ED25519_SSH_CERTIFICATE: Final = "identity-Ed25519.SSH-cert"
ED25519_SSH_KEY: Final = "identity-Ed25519.SSH-key"

CREDENTIALS: Final[Mapping[str, str]] = {
    "X.509-certificate": CERTIFICATE,
    "X.509-key": KEY,
    "RSA-X.509-certificate": CERTIFICATE,
    "RSA-X.509-key": KEY,
    "RSA-SSH-certificate": RSA_SSH_CERTIFICATE,
    "RSA-SSH-key": KEY,
    "Ed25519-X.509-certificate": ED25519_CERTIFICATE,
    "Ed25519-X.509-key": ED25519_KEY,
    "Ed25519-SSH-certificate": ED25519_SSH_CERTIFICATE,
    "Ed25519-SSH-key": ED25519_SSH_KEY,
}
"""Names below `IDENTITY`, and the files in the VM's directory that they are, as upstream's."""

TokensFor = Literal["nothing", "credentials", "everything"]


class VmView(Protocol):
    """What the service has to know of a VM."""

    @property
    def info(self) -> VmInfo:
        """The VM's record."""

    @property
    def user_data(self) -> Path | None:
        """The file with the VM's user data, which need not exist."""

    @property
    def credentials(self) -> Path | None:
        """The directory with the files of `CREDENTIALS`, none of which need exist."""


@dataclass(frozen=True)
class Text:
    """An answer that is at hand."""

    body: bytes


@dataclass(frozen=True)
class Token:
    """An answer that must go no further than to the guest itself."""

    body: bytes
    seconds: int


@dataclass(frozen=True)
class Signed:
    """An answer that is the signature of these bytes."""

    body: bytes


@dataclass(frozen=True)
class File:
    """An answer that is a file's content; without the file ``otherwise``, None: 404."""

    path: Path
    otherwise: bytes | None = None
    content_type: str = BINARY


@dataclass(frozen=True)
class Missing:
    """404 with an empty body."""


@dataclass(frozen=True)
class Refused:
    """Another status, with an empty body."""

    status: int


Answer = Text | Token | Signed | File | Missing | Refused
Document = Callable[[VmInfo], bytes]
"""Turns a VM's record into the identity document."""


@dataclass(frozen=True)
class Rules:
    """How a service answers."""

    document: Document = identity_document
    tokens: Tokens = field(default_factory=Tokens)
    tokens_for: TokensFor = "nothing"
    """What only those get who show a token. Never what tells that the service is here, and not
    what cloud-init fetches, which has none."""


def _true(_vm: VmView, _now: int, _document: Document) -> Answer:
    return Text(b"true\n")


def _epoch_time(_vm: VmView, now: int, _document: Document) -> Answer:
    seconds, nanoseconds = divmod(now, NANOSECONDS)
    return Text(b"%d.%09d\n" % (seconds, nanoseconds))


def _identity(vm: VmView, _now: int, document: Document) -> Answer:
    return Text(document(vm.info))


def _signature(vm: VmView, _now: int, document: Document) -> Answer:
    return Signed(document(vm.info))


def _credential(name: str) -> "_Route":
    def route(vm: VmView, _now: int, _document: Document) -> Answer:
        if vm.credentials is None:
            return Missing()
        return File(vm.credentials / name, content_type=TEXT)

    return route


def _user_data(vm: VmView, _now: int, _document: Document) -> Answer:
    return File(vm.user_data) if vm.user_data is not None else Missing()


def _nocloud(vm: VmView, _now: int, _document: Document) -> Answer:
    # Another VM at the same address is another instance: its first boot is one again.
    info = vm.info
    data = {"instance-id": f"{info.address.ip_address}-{info.created_on.unix_seconds}"}
    if info.hostname:
        data["local-hostname"] = info.hostname
    return Text(json.dumps(data).encode() + b"\n")


def _nocloud_user_data(vm: VmView, _now: int, _document: Document) -> Answer:
    return File(vm.user_data, b"") if vm.user_data is not None else Text(b"")


def _nothing(_vm: VmView, _now: int, _document: Document) -> Answer:
    return Text(b"")


_Route = Callable[[VmView, int, Document], Answer]
PATHS: Final[Mapping[str, _Route]] = {
    "/datasource/SmallStack": _true,
    "/latest/is-externally-patchable": _true,
    "/latest/dynamic/epoch-time": _epoch_time,
    f"{IDENTITY}/document": _identity,
    f"{IDENTITY}/signature": _signature,
    **{f"{IDENTITY}/{name}": _credential(file) for name, file in CREDENTIALS.items()},
    "/latest/user-data": _user_data,
    f"{NOCLOUD}/meta-data": _nocloud,
    f"{NOCLOUD}/user-data": _nocloud_user_data,
    f"{NOCLOUD}/vendor-data": _nothing,
}


def answer(request: Request, vm: VmView | None, now: int, rules: Rules) -> Answer:
    """What ``vm`` gets for a request at ``now``, nanoseconds since the epoch."""
    if vm is None:
        return Missing()
    path, headers = request.path, request.headers
    if path == TOKEN_PATH:
        return _token(request, vm, now, rules.tokens)
    if TOKEN in headers:
        if not rules.tokens.is_good(headers[TOKEN], vm.info, now):
            return Refused(401)
    elif _needs_token(path, rules.tokens_for):
        return Refused(401)
    known = PATHS.get(path)
    if known is not None:
        return known(vm, now, rules.document)
    listed = {name[1:] for name in PATHS} if path == "/*" else _following(path)
    if not listed:
        return Missing()
    return Text("".join(f"{name}\n" for name in sorted(listed)).encode())


def _token(request: Request, vm: VmView, now: int, tokens: Tokens) -> Answer:
    if request.method != "PUT":
        return Refused(405)
    if FORWARDED_FOR in request.headers:
        return Refused(403)  # it comes through a proxy: from who knows where
    seconds = seconds_asked(request.headers.get(TOKEN_SECONDS, ""))
    if seconds is None:
        return Refused(400)
    return Token(tokens.issue(vm.info, seconds, now), seconds)


def _needs_token(path: str, tokens_for: TokensFor) -> bool:
    if tokens_for == "everything":
        return path != "/datasource/SmallStack" and not path.startswith(f"{NOCLOUD}/")
    return tokens_for == "credentials" and path.removeprefix(f"{IDENTITY}/") in CREDENTIALS


def _following(path: str) -> set[str]:
    """What can follow, up to the next slash, for a path to begin one of ours."""
    found = set()
    for name in PATHS:
        if path and name.startswith(path) and name != path:
            found.add(name[len(path) :].removeprefix("/").partition("/")[0])
    return found
