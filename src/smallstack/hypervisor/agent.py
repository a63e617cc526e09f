"""All VMs of this machine and the parts they share; what a start finds, and what it repairs.

At start, in this order::

    journals of creates that did not end      every step they name is undone
    VM directories                            read; one without a record is removed if it is empty
    address book                              free is what no VM has
    volume directories                        those of no VM are told of
    network                                   guard, leases; taps of no VM are removed
    every VM                                  found again, launched or finished: see `states`
    VMs that nobody acknowledged              have 15 s from now on
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final

from smallstack.hypervisor.errors import NoVmError, RecordError, VolumeFileError
from smallstack.hypervisor.external_leases import ExternalLeases
from smallstack.hypervisor.host_key import HostKey
from smallstack.hypervisor.identities import Identities
from smallstack.hypervisor.images import Images
from smallstack.hypervisor.imports import Imports
from smallstack.hypervisor.ledger import Ledger
from smallstack.hypervisor.owners import Owners
from smallstack.hypervisor.roots import Roots, RootWanted, label_of
from smallstack.hypervisor.specs import Emulator, machine_spec
from smallstack.hypervisor.states import Action, Event, rule
from smallstack.hypervisor.store import INFO, Store, VmDirectory, remove_tree, root_index
from smallstack.hypervisor.strays import remove_strays, scan_snapshots
from smallstack.hypervisor.updates import Updates
from smallstack.hypervisor.users import COUNT, free_slot
from smallstack.hypervisor.vm import Vm
from smallstack.hypervisor.volume_files import check_volume_files
from smallstack.hypervisor.wiring import Nic, Wiring, taps_of
from smallstack.machine import process
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine
from smallstack.network.book import AddressBook
from smallstack.network.errors import NetworkError
from smallstack.network.subnets import parse_ip
from smallstack.objects.cache import ObjectCache
from smallstack.proto.enums import State
from smallstack.proto.vm import LocalVmInfo
from smallstack.telemetry.errors import describe
from smallstack.volumes.brick import is_imported

_log = logging.getLogger("smallstack.hypervisor")
ACKNOWLEDGE_SECONDS: Final = 15.0
"""How long a created VM waits for its creator's acknowledgement."""


@dataclass
class Parts:
    """What every VM shares."""

    store: Store
    owners: Owners
    ledger: Ledger
    book: AddressBook
    cache: ObjectCache
    images: Images
    roots: Roots
    wiring: Wiring
    emulator: Emulator
    imports: Imports
    key: HostKey
    identities: Identities


class Agent:
    """All VMs by their primary address. It is the runtime of their tasks."""

    def __init__(
        self,
        parts: Parts,
        acknowledge_seconds: float = ACKNOWLEDGE_SECONDS,
        *,
        anonymous_creates: bool = False,
    ) -> None:
        """``anonymous_creates``: callers without a name may create VMs, which nobody owns."""
        self.parts = parts
        self.anonymous_creates = anonymous_creates
        self.creates: Counter[str] = Counter()
        """``created`` and ``failed``."""
        self.vms: dict[str, Vm] = {}
        self.acknowledge_seconds = acknowledge_seconds
        self.on_change: list[Callable[[Vm], None]] = []
        self.updates = Updates(self)
        self.external_leases = ExternalLeases(parts.book, parts.wiring)
        self._nics: dict[str, list[Nic]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._kept_slots: Counter[int] = Counter()
        self._unreadable: set[str] = set()
        """VMs whose records cannot be read; any brick may be under their layers."""

    # The registry.

    def vm(self, ip: str) -> Vm:
        """The VM of that primary address. Raises NoVmError, BadIpError."""
        name = str(parse_ip(ip))
        found = self.vms.get(name)
        if found is None or found.gone:
            raise NoVmError(ip=name)
        return found

    def add(self, vm: Vm) -> None:
        """Enter a VM and start its task; it gets a slot if it has none that is its own."""
        taken = {other.agent.slot for other in self.vms.values()} | self._kept_slots.keys()
        if vm.agent.slot in taken or not 0 <= vm.agent.slot < COUNT:
            vm.agent.slot = free_slot(vm.ip, taken)
        self.vms[vm.ip] = vm
        self._tasks[vm.ip] = vm.begin()

    @contextmanager
    def keeping_slot(self, slot: int) -> Iterator[None]:
        """No new VM gets this slot as long as the context is open, whatever becomes of its VM."""
        self._kept_slots[slot] += 1
        try:
            yield
        finally:
            self._kept_slots[slot] -= 1
            self._kept_slots += Counter()  # without those at 0

    async def remove(self, vm: Vm) -> None:
        """Take a VM out whose create failed: its task ends, nothing else is touched."""
        if self.vms.get(vm.ip) is vm:
            del self.vms[vm.ip]
        task = self._tasks.pop(vm.ip, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.changed(vm)

    def rename(self, vm: Vm, record: LocalVmInfo, directory: VmDirectory) -> None:
        """A VM has another primary address, on disk already."""
        old = vm.ip
        vm.record, vm.directory = record, directory
        self.vms[vm.ip] = self.vms.pop(old)
        self._tasks[vm.ip] = self._tasks.pop(old)
        self.updates.note_gone(old)
        self.changed(vm)

    def macs_in_use(self) -> dict[str, str]:
        """IP to MAC of every address a VM has."""
        return {
            address.ip_address: address.mac_address
            for holding in self.parts.ledger.holdings.values()
            for address in holding.addresses
        }

    # The runtime of a VM's task.

    async def connect(self, vm: Vm) -> None:
        """Make the network of a VM ready for its next launch."""
        with vm.timeline.phase("network"):
            self._nics[vm.ip] = await self.parts.wiring.connect(vm.info, lease=vm.agent.lease)

    async def launch(self, vm: Vm) -> Machine:
        """Network, unless `connect` made it, and machine; when it raises, neither is left."""
        parts = self.parts
        parts.ledger.check_available(vm.info.memory_in_mib)
        await self._restore_brick(vm)
        await asyncio.to_thread(check_volume_files, vm.record, vm.agent)
        if vm.ip not in self._nics:
            await self.connect(vm)
        nics = self._nics.pop(vm.ip)
        try:
            spec = await asyncio.to_thread(
                machine_spec, vm.record, vm.agent, vm.directory.path, nics, parts.emulator
            )
            machine = await process.launch(
                spec, vm.timeline, start_limit=parts.emulator.start_limit
            )
            vm.timeline.add("qemu exec", machine.started_ns, machine.started_ns)
        except BaseException:
            await parts.wiring.disconnect(vm.info)
            await parts.wiring.close_taps(nics)
            raise
        # QEMU has its own copies of the descriptors: the taps live as long as it does.
        for nic in nics:
            asyncio.get_running_loop().run_in_executor(None, nic.tap.close)
        if machine.cpu_group is None and vm.info.cpu_priority:
            _renice(machine, vm.info.cpu_priority)
        return machine

    async def find(self, vm: Vm) -> Machine | None:
        """The machine an earlier run of the agent left, with its leases entered again."""
        machine = await process.find(vm.directory.path, vm.ip)
        try:
            if machine is None:
                await self.parts.wiring.disconnect(vm.info)
            else:
                await asyncio.to_thread(self._weigh, vm, machine)
                await self.parts.wiring.resume(vm.info, lease=vm.agent.lease)
        except NetworkError as error:
            _log.warning("%s: its network: %s", vm.ip, error)
        return machine

    async def reweigh(self, vm: Vm) -> None:
        """Have a running machine feel that its share of the processors, or its priority, is
        another one."""
        if (machine := vm.machine) is None:
            return
        if machine.cpu_group is None:
            _renice(machine, vm.info.cpu_priority)
        else:
            await asyncio.to_thread(self._weigh, vm, machine)

    def _weigh(self, vm: Vm, machine: Machine) -> None:
        """Give a machine that was found its share again: its group may have been without."""
        wanted = self.parts.emulator.cpu_group(vm.info)
        if wanted is None or machine.cpu_group is None:
            return
        try:
            replace(wanted, path=machine.cpu_group).set()
        except OSError as error:
            _log.warning("%s: its share of the processors: %s", vm.ip, describe(error))

    async def ended(self, vm: Vm, reason: ExitReason) -> None:
        """The machine is gone: shut its addresses out, unless it is to be launched again."""
        rebooting = reason is ExitReason.REBOOT and vm.state in (State.RUNNING, State.DEBUGGING)
        await self.parts.wiring.disconnect(vm.info, keep_lease=rebooting)

    async def disconnect(self, vm: Vm) -> None:
        """Undo `connect`; what a launch has taken over is left alone."""
        nics = self._nics.pop(vm.ip, [])
        await self.parts.wiring.disconnect(vm.info)
        await self.parts.wiring.close_taps(nics)

    async def delete(self, vm: Vm) -> None:
        """Everything on disk, then the addresses: in this order a crash loses nothing.

        Of a VM that is still being created only the network goes: the rest is its undo's.
        """
        await self.disconnect(vm)
        if vm.in_creation:
            return
        await self.parts.identities.stop(vm)
        directories = [Path(v.directory_to_cleanup) for v in vm.record.volume_locations]
        await asyncio.to_thread(self.delete_files, vm.ip, directories)
        self.parts.wiring.tracers.end(vm.ip)
        await self.parts.ledger.release(vm.ip)
        self.vms.pop(vm.ip, None)
        self._tasks.pop(vm.ip, None)

    def delete_files(self, ip: str, directories: Iterable[Path] = ()) -> None:
        """Remove what a VM has on disk. Blocks. Raises OSError."""
        for directory in {*directories, *(d / ip for d in self.parts.ledger.directories)}:
            if directory.name == ip:  # a record that names anything else does not get it removed
                remove_tree(directory)
        self.parts.store.vm(ip).remove()

    def changed(self, vm: Vm) -> None:
        """Tell those who want to know."""
        for listener in self.on_change:
            listener(vm)

    async def make_room(self, sizes: Sequence[int], within: Path | None = None) -> None:
        """Remove bricks that no VM needs, least used first, until ``sizes`` can be placed.

        ``within``: a volume directory that they have to be in. Where all of the bricks would not be
        enough they stay.
        """
        ledger = self.parts.ledger
        unused = await asyncio.to_thread(
            self.parts.roots.unused_bricks, self._backings(), imported=not self._unreadable
        )
        freed = await asyncio.to_thread(
            lambda: {path: sum(b.disk_usage() for b in bricks) for path, bricks in unused.items()}
        )
        if not ledger.has_room(sizes, within, freed):
            return
        device = ledger.host.space(within).device if within is not None else None
        for directory, bricks in unused.items():
            if device not in {None, ledger.host.space(directory).device}:
                continue
            if not ledger.has_room([min(sizes)], directory, freed):
                continue
            for brick in bricks:
                if ledger.has_room(sizes, within):
                    return
                await self.parts.roots.remove_brick(directory, brick, self._backings())

    def _backings(self) -> list[str]:
        return [vm.layer.backing for vm in self.vms.values()]

    async def _restore_brick(self, vm: Vm) -> None:
        """Make the brick under a layer again if it was lost, byte for byte."""
        backing, root = vm.agent.root.backing, root_index(vm.record)
        if not backing or root is None or await asyncio.to_thread(Path(backing).exists):
            return
        if is_imported(Path(backing)):
            return  # nothing it could be made from: see `check_volume_files`
        _log.warning("%s: the brick %s is gone: making it again", vm.ip, backing)
        image = await self.parts.images.find(vm.info.image_name)
        wanted = RootWanted(
            image,
            vm.info.volumes[root].size,
            Path(vm.record.volume_locations[root].filename),
            label_of(vm.ip),
            vm.info.firmware_type,
            (),
            {},
        )
        brick = await self.parts.roots.restore(wanted, vm.agent.root.loader)
        if str(brick.path.absolute()) != backing:
            raise RecordError(
                action="use",
                path=vm.record.volume_locations[root].filename,
                detail=f"the brick under it, {backing}, cannot be made again from its image",
            )

    # Start and end.

    async def load(self) -> None:
        """Read every VM's record and repair what a crash left; creates must be undone before.

        VMs whose record cannot be read are left alone: their files stay, their address too.
        """
        parts = self.parts
        directories = await asyncio.to_thread(lambda: list(parts.store.list()))
        unreadable = self._unreadable
        found: list[Vm] = []
        for directory in directories:
            try:
                vm = await asyncio.to_thread(self._load_one, directory)
            except RecordError as error:
                _log.error("%s: it is left alone", error)
                unreadable.add(directory.ip)
                continue
            if vm is not None:
                found.append(vm)
        # Those that have a slot first: their QEMU may be running as its user.
        for vm in sorted(found, key=lambda vm: vm.agent.slot < 0):
            parts.ledger.adopt(vm.record)
            slot = vm.agent.slot
            self.add(vm)
            if vm.agent.slot != slot:
                await asyncio.to_thread(self._note_slot, vm)
        await parts.ledger.reconcile(unreadable)
        await asyncio.to_thread(self._warn_of_strays, {*self.vms, *unreadable})
        await parts.wiring.install(
            vm.info
            for vm in self.vms.values()
            if rule(vm.state, Event.FIND).action is Action.SEARCH
        )
        await parts.wiring.remove_leftovers(vm.info for vm in self.vms.values())
        parts.wiring.on_tap_gone(self._tap_gone)

    async def resume(self) -> None:
        """Find every VM that its record says should run; returns when all were looked for.

        Those that were not found are being launched then.
        """
        vms = list(self.vms.values())
        damaged = await asyncio.to_thread(self._damaged, vms)
        await asyncio.gather(*(vm.find() for vm in vms))
        for vm, error in damaged:
            await vm.damaged(error)
        for vm in vms:
            if not vm.gone and not vm.directory.is_acknowledged:
                vm.expire_after(self.acknowledge_seconds)
        await self.parts.identities.resume(vm for vm in vms if not vm.gone)

    async def close(self) -> None:
        """Let go of every VM; the machines run on."""
        await self.parts.identities.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.parts.wiring.close()
        await self.parts.images.close()
        await self.parts.roots.close()
        await asyncio.to_thread(self.parts.cache.close)  # writes its index anew
        if self.parts.emulator.groups is not None:
            await asyncio.to_thread(self.parts.emulator.groups.close)
        self.parts.store.close()

    def _damaged(self, vms: Iterable[Vm]) -> list[tuple[Vm, VolumeFileError]]:
        """VMs with damaged volumes that are not going to be launched, which would tell."""
        found = []
        for vm in vms:
            if vm.state is State.STOPPED:
                try:
                    check_volume_files(vm.record, vm.agent)
                except VolumeFileError as error:
                    found.append((vm, error))
        return found

    def _tap_gone(self, name: str) -> None:
        for vm in self.vms.values():
            if vm.machine is not None and name in taps_of(vm.info):
                vm.machine.doubt()

    def _load_one(self, directory: VmDirectory) -> Vm | None:
        try:
            record: LocalVmInfo = directory.read()
        except FileNotFoundError:
            with suppress(OSError):
                directory.path.rmdir()
                return None
            raise RecordError(
                action="find", path=directory.path / INFO, detail="the directory is not empty"
            ) from None
        if record.vm_info.address.ip_address != directory.ip:
            raise RecordError(
                action="use",
                path=directory.path / INFO,
                detail=f"it is of {record.vm_info.address.ip_address or 'no address'}",
            )
        agent = directory.read_agent()
        try:
            remove_strays(record, agent.root)
            for volume, found in zip(record.vm_info.volumes, scan_snapshots(record), strict=False):
                volume.snapshots = found
        except OSError as error:
            _log.warning("%s: what is left over of a change: %s", directory.ip, describe(error))
        return Vm(record, directory, self, agent)

    def _note_slot(self, vm: Vm) -> None:
        try:
            vm.directory.write_agent(vm.agent)
        except OSError as error:
            _log.warning("%s: its record: %s", vm.ip, describe(error))

    def _warn_of_strays(self, known: set[str]) -> None:
        """Volumes of no VM are told of, not removed: the VMs may belong to another state
        directory."""
        for directory in self.parts.ledger.directories:
            for path in directory.iterdir():
                try:
                    IPv4Address(path.name)
                except AddressValueError:
                    continue
                if path.name not in known:
                    _log.warning("%s belongs to no VM of this agent", path)


def _renice(machine: Machine, priority: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, machine.pid, priority)
