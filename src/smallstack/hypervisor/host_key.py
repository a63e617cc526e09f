"""The Hypervisor's own RSA key: ``<state>/key.pem``.

By it an identity provider knows the Hypervisor, and everybody what it has signed: the identity
documents of its VMs. It is made when it is first needed, which takes a processor up to some
seconds, and kept.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smallstack.durable import replace_file
from smallstack.hypervisor.errors import RecordError
from smallstack.telemetry.errors import describe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

FILE: Final = "key.pem"
MODE: Final = 0o600
REMEMBERED: Final = 256
"""Signatures: as many as there are VMs, and more."""


class HostKey:
    """PKCS#8 in PEM, not encrypted, root's alone. Its methods raise RecordError."""

    def __init__(self, directory: Path) -> None:
        """``directory``: the state directory."""
        self.path = directory / FILE
        self._lock = asyncio.Lock()
        self._key: RSAPrivateKey | None = None
        self._signed: dict[bytes, bytes] = {}

    async def public(self) -> RSAPublicKey:
        """The public key."""
        return (await self._loaded()).public_key()

    async def public_pem(self) -> bytes:
        """The public key: PKIX in PEM."""
        key = await self._loaded()
        # Late, as below: few agents need it, and it is slow to import.
        from smallstack.identity.keys import public_pem

        return public_pem(key)

    async def sign(self, data: bytes) -> bytes:
        """The signature of some bytes, see `identity.keys.sign`; the latest are remembered."""
        known = self._signed.pop(data, None)
        if known is None:
            key = await self._loaded()
            from smallstack.identity.keys import sign

            known = await asyncio.to_thread(sign, key, data)
        self._signed[data] = known
        if len(self._signed) > REMEMBERED:
            del self._signed[next(iter(self._signed))]
        return known

    async def _loaded(self) -> RSAPrivateKey:
        async with self._lock:
            if self._key is None:
                self._key = await asyncio.to_thread(self._load)
        return self._key

    def _load(self) -> RSAPrivateKey:
        from smallstack.identity.keys import load_rsa_key, make_rsa_key

        try:
            try:
                private = self.path.read_bytes()
            except FileNotFoundError:
                private = make_rsa_key()
                replace_file(self.path, private, MODE)
            return load_rsa_key(private)
        except (OSError, ValueError, TypeError) as error:
            raise RecordError(action="use", path=self.path, detail=describe(error)) from error
