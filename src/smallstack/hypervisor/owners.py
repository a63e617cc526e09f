"""The owners of this Hypervisor: whom the Fleet Manager names may call every method, with powers.

``<state>/owners.json`` has the form of a topology's file of that name, so that an agent that was
started again knows them before the Fleet Manager calls.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from smallstack.durable import replace_file
from smallstack.hypervisor.errors import RecordError
from smallstack.hypervisor.store import read_record, to_json
from smallstack.identity.peer import Peer
from smallstack.outlast import outlast
from smallstack.proto.hypervisor.every import ChangeOwnersRequest
from smallstack.telemetry.errors import describe

FILE = "owners.json"


class Owners:
    """Users and groups; `grant` is for `smallstack.identity.decision.Policy`."""

    def __init__(self, path: Path) -> None:
        """Nobody; use `load`."""
        self._path = path
        self._lock = asyncio.Lock()
        self.users: frozenset[str] = frozenset()
        self.groups: frozenset[str] = frozenset()

    @classmethod
    def load(cls, directory: Path) -> "Owners":
        """Those of a state directory, nobody where there is no file. Blocks. Raises RecordError."""
        made = cls(directory / FILE)
        try:
            record = read_record(made._path, ChangeOwnersRequest)
        except FileNotFoundError:
            return made
        made._take(record)
        return made

    def grant(self, _service: str, peer: Peer) -> bool:
        """Whether the peer is an owner: that counts for every service."""
        return bool(peer.username) and (
            peer.username in self.users or not peer.groups.isdisjoint(self.groups)
        )

    async def change(self, users: Iterable[str], groups: Iterable[str]) -> None:
        """Have these owners and no others from now on, the next call included.

        Raises RecordError; the owners are then who they were.
        """
        record = ChangeOwnersRequest(
            owner_groups=sorted(set(groups) - {""}), owner_users=sorted(set(users) - {""})
        )
        async with self._lock:
            try:
                await outlast(
                    asyncio.to_thread(replace_file, self._path, to_json(record)),
                    lambda _: self._take(record),
                )
            except OSError as error:
                raise RecordError(
                    action="write", path=self._path, detail=describe(error)
                ) from error

    def _take(self, record: ChangeOwnersRequest) -> None:
        self.users, self.groups = frozenset(record.owner_users), frozenset(record.owner_groups)
