"""Creating a VM: a list of steps, each with its undo.

::

    reserve ─► directory ─► user data ─┐            ┌─► root    ─┐            ┌─► settle
                            image ─────┴► volumes ──┤            ├─► start ───┤
                                                    └─► network ─┘            └─► ready

What stands one above the other is done at the same time; user data come behind an image that the
client sends, and wait for it. Such an image, or one by URL, becomes a brick before its size is
known and a place is found for the VM (see imports). A step that fails, a client that goes
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
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from smallstack import steps
from smallstack.durable import sync_directory
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.checks import check_create, format_asked
from smallstack.hypervisor.dhcp_wait import DhcpWait
from smallstack.hypervisor.errors import (
    DisabledError,
    RecordError,
    SpaceError,
    VmExistsError,
)
from smallstack.hypervisor.identities import (
    check_pair,
    note_holder,
    pair_files,
    write_identity,
)
from smallstack.hypervisor.image_url import parse_image_url
from smallstack.hypervisor.images import KnownImage
from smallstack.hypervisor.imports import ImageWanted
from smallstack.hypervisor.new_vm import new_info
from smallstack.hypervisor.roots import RootWanted, full_disk, label_of, size_of
from smallstack.hypervisor.specs import kernel_arguments
from smallstack.hypervisor.store import ROOT, AgentRecord, Layer, remove_tree
from smallstack.hypervisor.vm import Vm
from smallstack.machine import process
from smallstack.network.subnets import Caller, parse_ip
from smallstack.proto.enums import State, VolumeFormat
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.proto.vm import LocalVmInfo, LocalVolume, Volume
from smallstack.steps import Action, Journal, NoUndo, PointHook, Steps, Together
from smallstack.telemetry.errors import describe
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.brick import Brick

if TYPE_CHECKING:
    from smallstack.identity.roles import Holder

_log = logging.getLogger("smallstack.hypervisor")
OPERATION = "create"
SECTOR = 512
Progress = Callable[[str, str], Awaitable[None]]
"""Called with a message and the VM's address, which is "" until the VM is being started."""


class Announced(Protocol):
    """The bytes that the client said it sends behind its request; see service.Upload."""

    def pieces(self, count: int) -> AsyncGenerator[bytes, None]:
        """The next ``count`` bytes."""

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
        self._brick: Brick | None = None
        """The image, if it was made elsewhere."""
        self._image_taken = asyncio.Event()
        """Nothing of an image that the client sends is left on the connection."""
        self._dhcp: DhcpWait | None = None
        self._holder: Holder | None = None
        """Who the VM is, if it is given an identity."""

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
        if not request.vm_info.image_name and (
            request.image_data_size or request.vm_info.image_url
        ):
            self._parts.imports.check(request.vm_info.image_url, request.image_data_size)
        if request.identity_certificate or request.identity_key:
            self._holder = await check_pair(
                request.identity_certificate, request.identity_key, caller
            )
        self._request, self._caller = request, caller
        self._announced, self._progress = announced, progress
        await steps.run(self.steps(), self._journal, on_point)
        self._journal.finish()
        vm = self.created
        vm.end_creation()
        self._agent.changed(vm)
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
            assert self._caller is not None
            holding = self._parts.ledger.holdings[self._ip]
            info = new_info(self._request.vm_info, holding, self._caller)
            note_holder(info, self._holder)
            record = LocalVmInfo(vm_info=info)
            self.vm = Vm(record, directory, self._agent, agent_record, timeline=self.timeline)
            self.vm.in_creation = True
            self._agent.add(self.vm)

    async def _undo_directory(self) -> None:
        if self.vm is not None:
            await self._agent.remove(self.vm)
        await asyncio.to_thread(self._parts.store.vm(self._ip).remove)

    # user data: whatever the client sends behind its request.

    async def _user_data(self) -> None:
        announced, request = self._announced, self._request
        assert announced is not None
        directory = self.created.directory
        with self.timeline.phase("user data"), full_disk(directory.user_data):
            await self._image_taken.wait()
            steps.inside()
            if request.user_data_size:
                await announced.store(request.user_data_size, directory.user_data)
            if self._holder is not None:
                files = pair_files(request.identity_certificate, request.identity_key)
                await asyncio.to_thread(write_identity, directory.path, files)
            await asyncio.to_thread(directory.write_request, request)

    # image: its tree; objects are fetched when it is known which are needed. Or a whole disk.

    async def _get_image(self) -> None:
        await self._progress("getting image", "")
        request, announced = self._request, self._announced
        assert announced is not None
        if not request.vm_info.image_name:
            if request.image_data_size or request.vm_info.image_url:
                await self._import_image()
            else:
                steps.inside()  # the root is empty
            self._image_taken.set()
            return
        await announced.skip(request.image_data_size)
        self._image_taken.set()
        with self.timeline.phase("get image"):
            steps.inside()
            self._image = await self._parts.images.find(
                request.vm_info.image_name, request.image_timeout, self._wait_for_image
            )
        self.created.info.image_name = self._image.name

    async def _wait_for_image(self) -> None:
        name, seconds = self._request.vm_info.image_name, self._request.image_timeout / 1e9
        await self._progress(f"waiting up to {seconds:.3g} s for image {name}: it is not there", "")

    async def _import_image(self) -> None:
        request, vm = self._request, self.created
        url, indices = request.vm_info.image_url, request.storage_indices
        sent = request.image_data_size
        uid, gid = self._parts.emulator.user(vm.agent.slot)
        wanted = ImageWanted(
            format_asked(request),
            (uid, gid) if uid is not None and gid is not None else None,
            url=None if sent else parse_image_url(url),
            sent=self._announced if sent else None,
            size=sent,
            index=indices[0] if indices else None,
            asker=self._caller.username if self._caller is not None else "",
            keep_user=partial(self._agent.keeping_slot, vm.agent.slot),
        )

        async def progress(message: str) -> None:
            await self._progress(message, "")

        with self.timeline.phase("get image"):
            imports = self._parts.imports
            async with imports.get(wanted, progress, self._agent.make_room) as brick:
                self._brick = brick
                # From here on it is this VM's, and is not removed for room.
                vm.agent.root = Layer(backing=str(brick.path.absolute()))
            steps.inside()

    # volumes: where the root goes, its space, its directory.

    def _size(self) -> int:
        """Bytes of the root disk: of a disk that was made elsewhere at least its own."""
        request, image = self._request, self._image
        if image is not None:
            return size_of(
                image,
                request.minimum_free_bytes,
                request.roundup_power,
                request.vm_info.firmware_type,
            )
        volumes = request.vm_info.volumes
        if self._brick is not None:
            wanted = max(self._brick.size, volumes[0].size if volumes else 0)
        else:
            wanted = request.minimum_free_bytes
        return -(-wanted // SECTOR) * SECTOR

    async def _volumes(self) -> None:
        request, vm = self._request, self.created
        with self.timeline.phase("volumes"):
            size = self._size()
            where = await self._place(size)
            asked = request.vm_info.volumes
            interface = asked[0].interface if asked else Volume().interface
            directory = where / self._ip
            vm.info.volumes = [Volume(size=size, format=VolumeFormat.RAW, interface=interface)]
            vm.record.volume_locations = [
                LocalVolume(directory_to_cleanup=str(directory), filename=str(directory / ROOT))
            ]
            with full_disk(directory):
                await asyncio.to_thread(directory.mkdir, 0o700)
            steps.inside()
        self._agent.changed(vm)

    async def _place(self, size: int) -> Path:
        ledger, request = self._parts.ledger, self._request
        # Over a brick of its own file system a layer may share its blocks.
        within = self._brick.path.parent.parent if self._brick is not None else None
        place = partial(
            ledger.place,
            self._ip,
            [size],
            spread=request.vm_info.spread_volumes,
            indices=request.storage_indices,
            within=within,
        )
        try:
            return place()[0]
        except SpaceError:
            await self._agent.make_room([size], within)
            return place()[0]

    async def _undo_volumes(self) -> None:
        for directory in self._parts.ledger.directories:
            await asyncio.to_thread(remove_tree, directory / self._ip)
        self._parts.ledger.forget_space(self._ip)

    # root: brick, layer, kernel.

    async def _root(self) -> None:
        vm, image, request = self.created, self._image, self._request
        if image is None:
            path = Path(vm.record.volume_locations[0].filename)
            size = vm.info.volumes[0].size
            vm.agent.root = await self._parts.roots.make_plain(
                self._brick, path, size, self.timeline
            )
            with full_disk(vm.directory.path):
                await asyncio.to_thread(vm.directory.write_agent, vm.agent, sync=False)
            return
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
            if self._brick is not None and vm.agent.root.backing:
                await self._parts.roots.durable(self._brick)
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
