"""Giving a stopped VM an address in another subnet: it gets another name with it.

::

    address taken ─► volumes: their directories renamed ─► record: written, its directory renamed

A failure undoes what was done; so does the next start after a crash, by the journal. The journal's
end, synced, is the end of the change: only then is the old address free.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from smallstack import steps
from smallstack.durable import sync_directory
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.errors import RecordError, RequestError, VmExistsError
from smallstack.hypervisor.roots import full_disk, label_of
from smallstack.hypervisor.store import Store, to_json
from smallstack.hypervisor.vm import Vm
from smallstack.network.subnets import Caller, parse_ip
from smallstack.outlast import outlast
from smallstack.proto.kinds import Time
from smallstack.proto.vm import Address, LocalVmInfo, LocalVolume
from smallstack.steps import Action, Journal, PointHook, Steps

OPERATION: Final = "subnet"


class SubnetChange:
    """The part on disk, of a VM by its old address and its new one."""

    def __init__(self, store: Store, journal: Journal) -> None:
        """Raises RecordError for a journal that says something else."""
        data = journal.data
        try:
            self._old, self._new = (str(parse_ip(data[name])) for name in ("old", "new"))
            self._directories = [Path(name) for name in data["directories"]]
            self._before, self._after = data["before"].encode(), data["after"].encode()
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(action="use", path=journal.path, detail=repr(error)) from error
        self._store = store

    def steps(self) -> Steps:
        """The table."""
        return [
            Action("volumes", self._volumes, self._undo_volumes),
            Action("record", self._record, self._undo_record),
        ]

    async def _volumes(self) -> None:
        await asyncio.to_thread(self._rename_all, self._old, self._new)

    async def _undo_volumes(self) -> None:
        await asyncio.to_thread(self._rename_all, self._new, self._old)

    def _rename_all(self, source: str, target: str) -> None:
        for directory in self._directories:
            if (directory / source).exists():
                _rename(directory / source, directory / target)
            steps.inside()

    async def _record(self) -> None:
        old, new = self._store.vm(self._old), self._store.vm(self._new)
        await asyncio.to_thread(old.write, self._after)
        steps.inside()
        await asyncio.to_thread(_rename, old.path, new.path)

    async def _undo_record(self) -> None:
        old, new = self._store.vm(self._old), self._store.vm(self._new)
        if new.path.exists():
            await asyncio.to_thread(_rename, new.path, old.path)
        await asyncio.to_thread(old.write, self._before)


async def change_subnet(
    agent: Agent, vm: Vm, subnet_id: str, caller: Caller, on_point: PointHook | None = None
) -> None:
    """Move a stopped VM. Its root keeps its label; an identity it has is dropped.

    Raises StateError, RequestError, VmExistsError, and what the address book refuses.
    """
    if subnet_id == vm.info.subnet_id:
        raise RequestError(detail=f"the VM is in subnet {subnet_id} already")
    vm.require_stopped()
    book = agent.parts.book
    address, subnet = await book.take(subnet_id, "", caller)
    if subnet.id in {vm.info.subnet_id, *vm.info.secondary_subnet_ids}:
        await book.release(address)
        raise RequestError(detail=f"the VM is in subnet {subnet.id} already")

    async def work() -> None:
        old = vm.info.address
        await _move(agent, vm, address, subnet.id, on_point)
        await agent.parts.ledger.readdress(old, vm.record)
        await agent.parts.identities.forget(vm)

    try:
        await outlast(vm.apply(work, stopped=True))
    finally:
        if vm.info.address != address:
            await outlast(book.release(address))


async def _move(
    agent: Agent, vm: Vm, address: Address, subnet_id: str, on_point: PointHook | None
) -> None:
    """In the VM's task: disk, then memory."""
    store, old, new = agent.parts.store, vm.ip, address.ip_address
    record = _readdressed(vm.record, address, subnet_id)
    directories = {Path(v.directory_to_cleanup).parent for v in vm.record.volume_locations}
    for path in (store.vm(new).path, *(directory / new for directory in directories)):
        if path.exists():
            raise VmExistsError(path=path)
    data = {
        "old": old,
        "new": new,
        "directories": sorted(map(str, directories)),
        "before": to_json(vm.record).decode(),
        "after": to_json(record).decode(),
    }
    path = store.journals / f"{OPERATION}-{os.urandom(8).hex()}"
    journal = Journal.create(path, OPERATION, data)
    with full_disk(store.vm(old).path):
        await steps.run(SubnetChange(store, journal).steps(), journal, on_point)
        journal.finish()
        await asyncio.to_thread(sync_directory, store.journals)
    agent.rename(vm, record, store.vm(new))


def _readdressed(before: LocalVmInfo, address: Address, subnet_id: str) -> LocalVmInfo:
    """The record of a VM at its new address."""
    old = before.vm_info.address.ip_address
    return LocalVmInfo(
        vm_info=replace(
            before.vm_info,
            address=address,
            subnet_id=subnet_id,
            root_file_system_label=before.vm_info.root_file_system_label or label_of(old),
            identity_name="",
            identity_expires=Time(),
        ),
        volume_locations=_relocated(before.volume_locations, old, address.ip_address),
    )


def _relocated(locations: Sequence[LocalVolume], old: str, new: str) -> list[LocalVolume]:
    moved = []
    for location in locations:
        file = Path(location.filename)
        if file.parent.name != old:
            raise RequestError(detail=f"{file} does not lie in a directory of the VM's name")
        directory = file.parent.with_name(new)
        moved.append(
            LocalVolume(directory_to_cleanup=str(directory), filename=str(directory / file.name))
        )
    return moved


async def recover(agent: Agent, path: Path) -> list[BaseException]:
    """Undo the change whose journal an earlier run left; the failures."""
    journal = Journal.load(path)
    return await steps.undo_all(SubnetChange(agent.parts.store, journal).steps(), journal)


def _rename(source: Path, target: Path) -> None:
    source.rename(target)
    sync_directory(target.parent)
