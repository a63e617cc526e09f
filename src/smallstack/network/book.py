"""The address book: the pool and the subnets of a Hypervisor, kept in its state directory.

``address-pool.json`` and ``subnets.json`` have upstream's names and form, indented by four
spaces. Every change is computed first, written to a temporary file, synced and renamed, and only
then takes effect; an error leaves disk and memory as they were.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import field

from smallstack.durable import replace_file
from smallstack.network.addresses import AddressPool, normal
from smallstack.network.errors import AddressError, RecordError, SubnetError
from smallstack.network.subnets import Caller, Subnets
from smallstack.outlast import outlast
from smallstack.proto.kinds import Message
from smallstack.proto.vm import Address, Subnet
from smallstack.srpc.errors import JsonError
from smallstack.srpc.json_coder import from_json, to_json
from smallstack.telemetry.errors import describe

POOL_FILE = "address-pool.json"
SUBNETS_FILE = "subnets.json"


@dataclass(frozen=True)
class Change:
    """What others are told of a change. ``registered`` and ``subnets`` are None if they did not
    change; ``free_counts`` is by subnet id."""

    free_counts: Mapping[str, int]
    registered: tuple[Address, ...] | None = None
    subnets: tuple[Subnet, ...] | None = None


class PoolRecord(Message, kw_only=True):
    """``address-pool.json``."""

    free: list[Address] = field(default_factory=list)
    registered: list[Address] = field(default_factory=list)


class AddressBook:
    """Pool and subnets with their files. Changes are made one after another."""

    def __init__(self, directory: Path, pool: AddressPool, subnets: Subnets) -> None:
        """Use `load`."""
        self.directory = directory
        self.pool = pool
        self.subnets = subnets
        self.on_change: list[Callable[[Change], None]] = []
        self._lock = asyncio.Lock()

    @classmethod
    def load(cls, directory: Path, pseudo_subnet: Subnet | None = None) -> "AddressBook":
        """Read both files; a missing one is empty. Blocks. Raises RecordError."""
        record: PoolRecord = _read(directory / POOL_FILE, PoolRecord) or PoolRecord()
        subnets: list[Subnet] = _read(directory / SUBNETS_FILE, list[Subnet]) or []
        if pseudo_subnet is not None:
            subnets.append(pseudo_subnet)
        path = directory / POOL_FILE
        try:
            free, registered = map(normal, record.free), map(normal, record.registered)
            pool = AddressPool(tuple(free), tuple(registered))
            path = directory / SUBNETS_FILE
            known = Subnets(subnets)
        except (AddressError, SubnetError) as error:
            raise RecordError(action="use", path=path, detail=describe(error)) from error
        return cls(directory, pool, known)

    # Addresses

    async def take(
        self, subnet_id: str = "", ip: str = "", caller: Caller | None = None
    ) -> tuple[Address, Subnet]:
        """Take a free address out of the pool, in the given or the only possible subnet.

        Raises PoolEmptyError, NoFreeAddressError, AddressNotFreeError, a SubnetError, BadIpError
        or RecordError.
        """
        async with self._lock:
            self.pool.check_not_empty()
            subnet = self.subnets.choose(subnet_id, caller)
            address, pool = self.pool.take(self.subnets, subnet, ip)
            before = self.pool
            try:
                await self._commit(pool)
            except asyncio.CancelledError:
                await self._commit(before)
                raise
        return address, subnet

    async def release(self, address: Address) -> None:
        """Give an address back; it becomes the last free one. Raises RecordError."""
        async with self._lock:
            await self._commit(self.pool.release(address))

    async def reconcile(self, used: Collection[Address]) -> None:
        """Make the free list what it has to be when exactly ``used`` are in use; for the start,
        after a crash between taking an address and making its VM. Raises RecordError."""
        async with self._lock:
            pool = self.pool.reconciled(used)
            if pool != self.pool:
                await self._commit(pool)

    async def register(self, address: Address) -> None:
        """Add an address that a VM brings with it. Raises RecordError."""
        async with self._lock:
            await self._commit(self.pool.register(address))

    async def unregister(self, address: Address) -> None:
        """Forget an address that leaves with its VM. Raises NotRegisteredError, RecordError."""
        async with self._lock:
            await self._commit(self.pool.unregister(address))

    async def change_pool(
        self,
        add: Sequence[Address] = (),
        remove: Sequence[Address] = (),
        maximum_free: Mapping[str, int] | None = None,
        used: Mapping[str, str] | None = None,
    ) -> None:
        """``ChangeAddressPool``: add, then remove, then limit; all of it or nothing.

        ``used`` maps the IP of every VM's address, primary or secondary, to its MAC. Raises an
        AddressError or RecordError.
        """
        used = used or {}
        async with self._lock:
            pool = self.pool.add(add, self.subnets, used).remove(remove, used)
            if maximum_free:
                pool = pool.limit_free(maximum_free, self.subnets)
            if pool != self.pool:
                await self._commit(pool)

    # Subnets

    async def update_subnets(
        self,
        add: Sequence[Subnet] = (),
        change: Sequence[Subnet] = (),
        delete: Sequence[str] = (),
    ) -> None:
        """``UpdateSubnets``: all of it or nothing.

        Raises a SubnetError, NoMatchingSubnetError if a free address would be left without a
        subnet, or RecordError.
        """
        async with self._lock:
            subnets = self.subnets.updated(add, change, delete)
            counts = self.pool.free_counts(subnets)
            reported = subnets.reported()

            def take_effect() -> None:
                self.subnets = subnets
                self._tell(Change(counts, self.pool.registered, tuple(reported)))

            path = self.directory / SUBNETS_FILE
            await _write(path, reported, list[Subnet], take_effect)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Have every change wait."""
        async with self._lock:
            yield

    def list_subnets(self) -> list[Subnet]:
        """Every subnet, by id."""
        return sorted(self.subnets, key=lambda subnet: subnet.id)

    async def _commit(self, pool: AddressPool) -> None:
        counts = pool.free_counts(self.subnets)
        known = self.pool.registered
        changed = pool.registered if pool.registered != known else None

        def take_effect() -> None:
            self.pool = pool
            self._tell(Change(counts, changed))

        record = PoolRecord(free=list(pool.free), registered=list(pool.registered))
        await _write(self.directory / POOL_FILE, record, PoolRecord, take_effect)

    def _tell(self, change: Change) -> None:
        for listener in self.on_change:
            listener(change)


def _read(path: Path, type_: Any) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(action="read", path=path, detail=error.strerror) from error
    try:
        return from_json(data, type_)
    except JsonError as error:
        raise RecordError(action="read", path=path, detail=describe(error)) from error


async def _write(path: Path, value: object, type_: Any, take_effect: Callable[[], None]) -> None:
    """Write a record, then let it take effect; a caller that is cancelled gets both as well."""
    text = to_json(value, type_, indent=4) + b"\n"
    try:
        await outlast(asyncio.to_thread(replace_file, path, text), lambda _: take_effect())
    except OSError as error:
        raise RecordError(action="write", path=path, detail=describe(error)) from error
