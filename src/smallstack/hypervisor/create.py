"""Creating a VM: a list of steps, each with its undo.

::

    reserve ─► directory ─► user data ─┐            ┌─► root    ─┐            ┌─► settle
                            image ─────┴► volumes ──┤            ├─► start ───┤
                                                    └─► network ─┘            └─► ready

What stands one above the other is done at the same time. A step that fails, a client that goes
away, and a crash (by the journal, at the next start) undo all of them in reverse: no tap, no file,
no lease, no address is left. The create is over when the guest has its address (``ready``), or
was not waited for; the journal is then removed, and the creator has 15 s to acknowledge.

Only the journal is synced as the steps go: a crash of the agent alone loses nothing that was
written, and after a crash of the machine nothing but the journal has to be right, since all else
is removed. ``settle`` makes the VM's own files durable while the guest boots.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from smallstack import steps
from smallstack.durable import sync_directory
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.checks import check_create
from smallstack.hypervisor.dhcp_wait import DhcpWait
from smallstack.hypervisor.errors import (
    DisabledError,
    RecordError,
    SpaceError,
    VmExistsError,
)
from smallstack.hypervisor.images import KnownImage
from smallstack.hypervisor.roots import RootWanted, full_disk, label_of, size_of
from smallstack.hypervisor.specs import kernel_arguments
from smallstack.hypervisor.store import AgentRecord, remove_tree
from smallstack.hypervisor.vm import Vm
from smallstack.machine import process
from smallstack.network.subnets import Caller, parse_ip
from smallstack.proto.enums import ArchitectureType, State, VolumeFormat
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.proto.kinds import Time
from smallstack.proto.vm import LocalVmInfo, LocalVolume, VmInfo, Volume
from smallstack.steps import Action, Journal, NoUndo, PointHook, Steps, Together
from smallstack.telemetry.errors import SmallStackError, describe
from smallstack.telemetry.timeline import Timeline

_log = logging.getLogger("smallstack.hypervisor")
OPERATION = "create"
Progress = Callable[[str, str], Awaitable[None]]
"""Called with a message and the VM's address, which is "" until the VM is being started."""


class Announced(Protocol):
    """The bytes that the client said it sends behind its request; see service.Upload."""

    async def skip(self, count: int) -> None:
        """Throw the next ``count`` bytes away."""

    async def store(self, count: int, path: Path) -> None:
        """Write the next ``count`` bytes to a new file, 0600."""


class Creation:
    """One create. Made for a request, or by `recover` to undo what a crash left."""

    def __init__(self, agent: Agent, journal: Journal, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or Timeline()
        self.vm: Vm | None = None
        self.dhcp_timed_out = False
        self._agent = agent
        self._parts = agent.parts
        self._journal = journal
        ip = journal.notes.get("ip", "")
        self._ip = str(parse_ip(ip)) if ip else ""
        self._request = CreateVmRequest()
        self._caller: Caller | None = None
        self._announced: Announced | None = None
        self._progress: Progress = _silent
        self._image: KnownImage | None = None
        self._dhcp: DhcpWait | None = None

    @property
    def created(self) -> Vm:
        """The VM, once it was made."""
        assert self.vm is not None
        return self.vm

    async def run(
        self,
        request: CreateVmRequest,
        caller: Caller,
        announced: Announced,
        progress: Progress,
        on_point: PointHook | None = None,
    ) -> Vm:
        """Make the VM; when this raises, also by being cancelled, nothing is left of it.

        The VM is running, or stopped if the request says so; `dhcp_timed_out` tells how the wait
        for its DHCP ended. It is destroyed unless it is acknowledged in time.
        """
        if self._parts.store.disabled:
            raise DisabledError
        check_create(
            request,
            caller,
            anonymous=self._agent.anonymous_creates,
            processors=self._parts.emulator.processors,
        )
        self._request, self._caller = request, caller
        self._announced, self._progress = announced, progress
        await steps.run(self.steps(), self._journal, on_point)
        self._journal.finish()
        vm = self.created
        vm.end_creation()
        vm.expire_after(self._agent.acknowledge_seconds)
        return vm

    async def undo(self) -> list[BaseException]:
        """Undo what the journal names; the failures. Raises RecordError for a broken journal."""
        if not self._ip and self._journal.begun not in ([], ["reserve"]):
            raise RecordError(action="use", path=self._journal.path, detail="it names no address")
        return await steps.undo_all(self.steps(), self._journal)

    def steps(self) -> Steps:
        """The table. Names are what the journal and the kill points call the steps."""
        nothing_own = NoUndo("what it fetches is the cache's, which is bounded and shared")
        by_directory = NoUndo("its file is in the VM's directory, which goes with its own step")
        with_start = NoUndo("it only syncs and waits; the machine goes with the step `start`")
        return [
            Action("reserve", self._reserve, self._undo_reserve),
            Action("directory", self._directory, self._undo_directory),
            Together(
                Action("user data", self._user_data, by_directory),
                Action("image", self._get_image, nothing_own),
            ),
            Action("volumes", self._volumes, self._undo_volumes),
            Together(
                Action("root", self._root, NoUndo("its files go with the step `volumes`")),
                Action("network", self._network, self._undo_network),
            ),
            Action("start", self._start, self._undo_start),
            Together(
                Action("settle", self._settle, with_start),
                Action("ready", self._ready, with_start),
            ),
        ]

    # reserve: address, memory, processors. In memory and in the address book.

    async def _reserve(self) -> None:
        with self.timeline.phase("reserve"):
            holding = await self._parts.ledger.reserve(self._request.vm_info, self._caller)
            self._ip = holding.ip
            self._journal.remember(ip=self._ip)
            steps.inside()
            # What is in the way must not be taken for ours, and removed, by a later undo.
            wanted = [self._parts.store.vm(self._ip).path]
            wanted += [directory / self._ip for directory in self._parts.ledger.directories]
            for path in wanted:
                if path.exists():
                    raise VmExistsError(path=path)

    async def _undo_reserve(self) -> None:
        # After a crash the free addresses are derived from the VMs there are.
        if self._ip:
            await self._parts.ledger.release(self._ip)

    # directory: the VM's own, and its place in the registry.

    async def _directory(self) -> None:
        directory = self._parts.store.vm(self._ip)
        with self.timeline.phase("directory"), full_disk(directory.path):
            await asyncio.to_thread(directory.create)
            steps.inside()
            await asyncio.to_thread(directory.expect_acknowledgement)
            agent_record = AgentRecord(lease=self._request.dhcp_timeout >= 0)
            record = LocalVmInfo(vm_info=self._new_info())
            self.vm = Vm(record, directory, self._agent, agent_record, timeline=self.timeline)
            self.vm.in_creation = True
            self._agent.add(self.vm)

    async def _undo_directory(self) -> None:
        if self.vm is not None:
            await self._agent.remove(self.vm)
        await asyncio.to_thread(self._parts.store.vm(self._ip).remove)

    def _new_info(self) -> VmInfo:
        """The record of the new VM: what was asked for, with what the agent chose."""
        asked = self._request.vm_info
        holding = self._parts.ledger.holdings[self._ip]
        caller = self._caller
        assert caller is not None
        architecture = asked.architecture_type
        if architecture is ArchitectureType.AUTO:
            architecture = ArchitectureType.AMD64
        now = Time.now()
        return VmInfo(
            address=holding.addresses[0],
            architecture_type=architecture,
            changed_state_on=now,
            created_on=now,
            console_type=asked.console_type,
            cpu_priority=asked.cpu_priority,
            destroy_on_powerdown=asked.destroy_on_powerdown,
            destroy_protection=asked.destroy_protection,
            disable_virtio=asked.disable_virtio,
            extra_kernel_options=asked.extra_kernel_options,
            firmware_type=asked.firmware_type,
            hostname=asked.hostname,
            image_name=asked.image_name,
            image_url=asked.image_url,
            machine_type=asked.machine_type,
            memory_in_mib=asked.memory_in_mib,
            milli_cpus=asked.milli_cpus,
            network_entries=asked.network_entries[: len(holding.addresses)],
            owner_groups=asked.owner_groups,
            owner_users=[u for u in dict.fromkeys([caller.username, *asked.owner_users]) if u],
            spread_volumes=asked.spread_volumes,
            state=State.STOPPED,
            secondary_addresses=holding.addresses[1:],
            secondary_subnet_ids=holding.subnet_ids[1:],
            subnet_id=holding.subnet_ids[0],
            tags=asked.tags,
            virtual_cpus=asked.virtual_cpus,
            watchdog_action=asked.watchdog_action,
            watchdog_model=asked.watchdog_model,
        )

    # user data: whatever the client sends behind its request.

    async def _user_data(self) -> None:
        announced, request = self._announced, self._request
        assert announced is not None
        directory = self.created.directory
        with self.timeline.phase("user data"), full_disk(directory.user_data):
            await announced.skip(request.image_data_size)
            steps.inside()
            if request.user_data_size:
                await announced.store(request.user_data_size, directory.user_data)
            await asyncio.to_thread(directory.write_request, request)

    # image: its tree; objects are fetched when it is known which are needed.

    async def _get_image(self) -> None:
        await self._progress("getting image", "")
        request = self._request
        with self.timeline.phase("get image"):
            steps.inside()
            self._image = await self._parts.images.find(
                request.vm_info.image_name, request.image_timeout
            )
        self.created.info.image_name = self._image.name

    # volumes: where the root goes, its space, its directory.

    async def _volumes(self) -> None:
        request, image, vm = self._request, self._image, self.created
        assert image is not None
        with self.timeline.phase("volumes"):
            size = size_of(
                image,
                request.minimum_free_bytes,
                request.roundup_power,
                request.vm_info.firmware_type,
            )
            where = await self._place(size)
            asked = request.vm_info.volumes
            interface = asked[0].interface if asked else Volume().interface
            directory = where / self._ip
            vm.info.volumes = [Volume(size=size, format=VolumeFormat.RAW, interface=interface)]
            vm.record.volume_locations = [
                LocalVolume(directory_to_cleanup=str(directory), filename=str(directory / "root"))
            ]
            with full_disk(directory):
                await asyncio.to_thread(directory.mkdir, 0o700)
            steps.inside()

    async def _place(self, size: int) -> Path:
        ledger, request = self._parts.ledger, self._request
        spread, indices = request.vm_info.spread_volumes, request.storage_indices
        try:
            return ledger.place(self._ip, [size], spread=spread, indices=indices)[0]
        except SpaceError:
            await self._agent.make_room([size])
            return ledger.place(self._ip, [size], spread=spread, indices=indices)[0]

    async def _undo_volumes(self) -> None:
        for directory in self._parts.ledger.directories:
            await asyncio.to_thread(remove_tree, directory / self._ip)
        self._parts.ledger.forget_space(self._ip)

    # root: brick, layer, kernel.

    async def _root(self) -> None:
        vm, image, request = self.created, self._image, self._request
        assert image is not None
        await self._progress(f"unpacking image: {image.name}", "")
        wanted = RootWanted(
            image=image,
            size=vm.info.volumes[0].size,
            path=Path(vm.record.volume_locations[0].filename),
            label=label_of(self._ip),
            firmware=vm.info.firmware_type,
            directories=request.overlay_directories,
            files=request.overlay_files,
            options=None if request.skip_bootloader else partial(kernel_arguments, vm.info, False),
        )
        vm.agent.root = await self._parts.roots.make(wanted, self.timeline)
        with full_disk(vm.directory.path):
            await asyncio.to_thread(vm.directory.write_agent, vm.agent, sync=False)

    # network: tap, guard, lease.

    async def _network(self) -> None:
        if self._request.do_not_start:
            steps.inside()
            return
        await self._agent.connect(self.created)
        self._dhcp = DhcpWait(self._parts.wiring.dhcp, self.created)
        steps.inside()

    async def _undo_network(self) -> None:
        if self._dhcp is not None:
            self._dhcp.close()
        if self.vm is not None:
            await self._agent.disconnect(self.vm)

    # start: the record, then the machine.

    async def _start(self) -> None:
        vm = self.created
        vm.durable = False
        if self._request.do_not_start:
            steps.inside()
            await vm.save()
            return
        await self._progress(f"starting VM {self._ip}", self._ip)
        starting = asyncio.ensure_future(vm.start())
        begun = asyncio.ensure_future(vm.until(lambda: vm.state is not State.STOPPED))
        try:
            await asyncio.wait((starting, begun), return_when=asyncio.FIRST_COMPLETED)
            steps.inside()
            await starting
        finally:
            starting.cancel()
            begun.cancel()

    async def _undo_start(self) -> None:
        if self.vm is not None and self._agent.vms.get(self._ip) is self.vm:
            await self.vm.expire()
            return
        machine = await process.find(self._parts.store.vm(self._ip).path, self._ip)
        if machine is not None:
            await machine.quit()

    # settle and ready: make it durable, and wait for the guest.

    async def _settle(self) -> None:
        vm = self.created
        files = [Path(location.filename) for location in vm.record.volume_locations]
        with self.timeline.phase("settle"), full_disk(vm.directory.path):
            await asyncio.to_thread(_sync, files, vm.directory.path)
            steps.inside()
            vm.durable = True
            await vm.save()

    async def _ready(self) -> None:
        steps.inside()
        if self._dhcp is None:
            return
        try:
            self.dhcp_timed_out = await self._dhcp.wait(self._request.dhcp_timeout)
        finally:
            self._dhcp.close()


async def recover(agent: Agent, path: Path) -> None:
    """Undo the create whose journal an earlier run left, unless its VM was acknowledged.

    The journal's own removal is not synced: after a crash of the machine it can be there again
    although its create was over. What could not be undone is logged; its journal stays.
    """
    journal = Journal.load(path)
    ip = journal.notes.get("ip", "")
    directory = agent.parts.store.vm(ip or "-")
    if "settle" in journal.begun and directory.path.is_dir() and directory.is_acknowledged:
        journal.finish()
        return
    _log.warning("undoing the create of %s, which a crash cut short", ip or "a VM")
    for failure in await Creation(agent, journal).undo():
        _log.error("%s: %s", path, describe(failure))


def new_journal(directory: Path) -> Journal:
    """A journal of its own for a create. Nothing is written yet."""
    return Journal.create(directory / f"{OPERATION}-{os.urandom(8).hex()}", OPERATION)


async def recover_all(agent: Agent) -> None:
    """`recover` for every journal there is; one that cannot be read stays."""
    for path in sorted(agent.parts.store.journals.iterdir()):
        try:
            await recover(agent, path)
        except (OSError, ValueError, SmallStackError) as error:
            _log.error("journal %s: %s", path, describe(error))


def _sync(files: list[Path], directory: Path) -> None:
    """Make a VM's files and their names durable."""
    names = {directory, directory.parent}
    for file in files:
        with suppress(FileNotFoundError):
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        names |= {file.parent, file.parent.parent}
    for path in sorted(names):
        sync_directory(path)


async def _silent(_message: str, _ip: str) -> None:
    return
