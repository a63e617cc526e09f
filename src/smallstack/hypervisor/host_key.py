"""The Hypervisor's own RSA key, by which an identity provider knows it: ``<state>/key.pem``.

It is made when somebody first asks for it, which takes a processor up to some seconds, and kept.
"""

import asyncio
from pathlib import Path

from smallstack.durable import replace_file
from smallstack.hypervisor.errors import RecordError
from smallstack.telemetry.errors import describe

FILE = "key.pem"
MODE = 0o600


class HostKey:
    """PKCS#8 in PEM, not encrypted, root's alone."""

    def __init__(self, directory: Path) -> None:
        """``directory``: the state directory."""
        self._path = directory / FILE
        self._lock = asyncio.Lock()
        self._public = b""

    async def public_pem(self) -> bytes:
        """The public key: PKIX in PEM. Raises RecordError."""
        async with self._lock:
            if not self._public:
                self._public = await asyncio.to_thread(self._load)
        return self._public

    def _load(self) -> bytes:
        # Late: few agents need it, and it is slow to import.
        from smallstack.identity.keys import make_rsa_key, public_key

        try:
            try:
                private = self._path.read_bytes()
            except FileNotFoundError:
                private = make_rsa_key()
                replace_file(self._path, private, MODE)
            return public_key(private)
        except (OSError, ValueError) as error:
            raise RecordError(action="use", path=self._path, detail=describe(error)) from error
