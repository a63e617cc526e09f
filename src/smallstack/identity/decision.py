"""May this peer call this method: one function, one order of decisions.

The order (Dominator's, which clients rely on):

1. method powers: a permitted-method pattern of the certificate, a trusted user, a trusted group,
   or, for a server that itself runs in a SmallStack VM, an owner of that VM;
2. the grant of the service (on a Hypervisor: its owners), which is asked by service name only;
3. the method is public and the peer has a name: allowed, without powers;
4. the method may be called by anybody: allowed, without powers;
5. refused.

A peer that asked not to use method powers skips 1 and 2. Powers matter beyond the call itself:
they pass over the ownership checks of single VMs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from smallstack.identity.peer import Peer


class Decision(NamedTuple):
    """Whether the call is allowed, and whether by method powers."""

    allowed: bool
    have_method_access: bool


class Policy:
    """What a server trusts beside certificates. The sets may be replaced while it runs."""

    __slots__ = ("grant", "owner_groups", "owner_users", "trusted_groups", "trusted_users")

    def __init__(
        self,
        *,
        trusted_users: frozenset[str] = frozenset(),
        trusted_groups: frozenset[str] = frozenset(),
        owner_users: frozenset[str] = frozenset(),
        owner_groups: frozenset[str] = frozenset(),
        grant: Callable[[str, Peer], bool] | None = None,
    ) -> None:
        """``owner_*`` are the owners of the VM the server runs in; ``grant(service, peer)``."""
        self.trusted_users = trusted_users
        self.trusted_groups = trusted_groups
        self.owner_users = owner_users
        self.owner_groups = owner_groups
        self.grant = grant


def decide(
    peer: Peer, method: str, *, public: bool, unauthenticated: bool, policy: Policy
) -> Decision:
    """The decision about one call of ``method``, a full name such as ``Hypervisor.CreateVm``.

    ``unauthenticated`` says that the method may be called by anybody on this server.
    """
    if peer.allow_method_powers and (
        _has_powers(peer, method, policy)
        or (policy.grant is not None and policy.grant(method.partition(".")[0], peer))
    ):
        return Decision(True, True)
    if public and peer.username:
        return Decision(True, False)
    return Decision(unauthenticated, False)


def _has_powers(peer: Peer, method: str, policy: Policy) -> bool:
    if peer.methods is None or any(match(pattern, method) for pattern in peer.methods):
        return True
    if not peer.username:
        return False
    return (
        peer.username in policy.trusted_users
        or peer.username in policy.owner_users
        or not peer.groups.isdisjoint(policy.trusted_groups)
        or not peer.groups.isdisjoint(policy.owner_groups)
    )


@lru_cache(4096)  # a certificate's patterns are asked about at every call of its owner
def match(pattern: str, name: str) -> bool:
    """Shell-style match as in Go's ``filepath.Match``; a malformed pattern matches nothing.

    ``*`` and ``?`` do not match ``/``; classes are ``[a-z]`` and ``[^a-z]``; a backslash takes the
    next character literally. Time is bounded by len(pattern) x len(name).
    """
    tokens = _tokens(pattern)
    if tokens is None:
        return False
    token = position = 0
    star, retry = -1, 0
    while position < len(name):
        if token < len(tokens) and tokens[token] is None:
            star, retry = token, position
            token += 1
        elif token < len(tokens) and _takes(tokens[token], name[position]):
            token += 1
            position += 1
        elif star >= 0 and name[retry] != "/":
            retry += 1
            token, position = star + 1, retry
        else:
            return False
    return all(rest is None for rest in tokens[token:])


def is_pattern(pattern: str) -> bool:
    """Whether `match` can ever say yes to it: a malformed one matches nothing."""
    return _tokens(pattern) is not None


_Class = tuple[bool, tuple[tuple[str, str], ...]]
_Token = _Class | None
"""None is ``*``; else whether the class is negated, and its ranges."""


def _takes(token: _Token, char: str) -> bool:
    if token is None:
        return False
    negated, ranges = token
    return any(low <= char <= high for low, high in ranges) != negated


def _tokens(pattern: str) -> list[_Token] | None:
    """The parsed pattern, None when it is malformed."""
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            tokens.append(None)
        elif char == "?":
            tokens.append((True, (("/", "/"),)))
        elif char == "[":
            parsed = _parse_class(pattern, at)
            if parsed is None:
                return None
            token, at = parsed
            tokens.append(token)
        else:
            if char == "\\":
                if at == len(pattern):
                    return None
                char = pattern[at]
                at += 1
            tokens.append((False, ((char, char),)))
    return tokens


def _parse_class(pattern: str, at: int) -> tuple[_Class, int] | None:
    """The class whose ``[`` stands before ``at`` and the place behind its ``]``."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[tuple[str, str]] = []
    while True:
        if ranges and pattern[at : at + 1] == "]":
            return (negated, tuple(ranges)), at + 1
        low = _class_char(pattern, at)
        if low is None:
            return None
        high: tuple[str, int] | None = low
        if pattern[low[1] : low[1] + 1] == "-":
            high = _class_char(pattern, low[1] + 1)
        if high is None:
            return None
        ranges.append((low[0], high[0]))
        at = high[1]


def _class_char(pattern: str, at: int) -> tuple[str, int] | None:
    """One, perhaps escaped, character of a class and the place behind it."""
    char = pattern[at : at + 1]
    if char == "\\":
        at += 1
        char = pattern[at : at + 1]
    elif char in {"-", "]"}:
        return None
    return (char, at + 1) if char else None
