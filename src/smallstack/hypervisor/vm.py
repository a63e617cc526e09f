"""One VM: the task that owns it, and what others may read of it.

Requests and news of the machine come through one queue and are looked up in the table of
`states`; only the task of `Vm.run` changes the state. Whatever takes time (a launch, a stop, a
search) is a task beside it that puts its outcome into the same queue, so that a request that has
to be refused is refused at once. Reads look at ``record`` and wait for nobody.

::

    callers ──► start stop reboot destroy acknowledge ─┐
    machine ──► UP FAILED and its ends ────────────────┼─► queue ─► table ─► record ─► action
    agent   ──► FIND EXPIRE ───────────────────────────┘

What changes the record stands in that queue as well: nothing happens to a VM while it is changed.
Whatever takes long (copying a volume) holds the VM instead: then requests are refused at once, and
a destruction that is due comes afterwards.

A state is on disk before its action begins, where a crash in between would matter: START. A full
disk refuses a START and nothing else: stopping and destroying are the ways out of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final, TypeVar

from smallstack.hypervisor.errors import (
    BlockedError,
    DiskError,
    NoAccessError,
    NoVmError,
    StateError,
)
from smallstack.hypervisor.runtime import Runtime
from smallstack.hypervisor.states import REQUESTS, STOP_TIMEOUT, Action, Event, rule
from smallstack.hypervisor.store import AgentRecord, Layer, VmDirectory, root_index, to_json
from smallstack.machine.errors import MachineError
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import Machine
from smallstack.network.subnets import Caller
from smallstack.outlast import outlast
from smallstack.proto.enums import State
from smallstack.proto.kinds import Time
from smallstack.proto.vm import LocalVmInfo, VmInfo
from smallstack.telemetry.errors import describe
from smallstack.telemetry.timeline import Timeline

_log = logging.getLogger("smallstack.hypervisor")

RELAUNCH_INTERVAL = 1.0
"""Seconds between two launches of a guest that reboots by itself, at least."""
TOKEN_BYTES = 32
PUT_OFF: Final = (Event.DESTROY, Event.EXPIRE)
T = TypeVar("T")

_END_EVENTS = {
    ExitReason.GUEST_SHUTDOWN: Event.GUEST_SHUTDOWN,
    ExitReason.REBOOT: Event.GUEST_REBOOT,
    ExitReason.QUIT: Event.QUIT,
    ExitReason.CRASHED: Event.CRASHED,
    ExitReason.DIED: Event.CRASHED,
    ExitReason.FAILED: Event.FAILED,
}


@dataclass
class _Item:
    """One entry of the queue."""

    event: Event
    accepted: "asyncio.Future[Any] | None" = None
    error: Exception | None = None


@dataclass
class _Work:
    """Another kind: what is done between two events."""

    work: Callable[[], Awaitable[Any]]
    accepted: "asyncio.Future[Any]"
    stopped: bool
    holding: bool


@dataclass(eq=False)
class Vm:
    """One VM. ``record`` is what disk and callers see; nobody but the task changes its state."""

    record: LocalVmInfo
    directory: VmDirectory
    runtime: Runtime
    agent: AgentRecord = field(default_factory=AgentRecord)
    in_creation: bool = False
    """A create has the VM: callers may read it and nothing else, and its undo deletes it."""
    durable: bool = True
    """Whether records are synced as they are written; a create does that at its end."""
    access_token: bytes = b""
    timeline: Timeline = field(default_factory=Timeline)
    machine: Machine | None = None
    error: Exception | None = None
    """Why the last launch failed."""

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[_Item | _Work] = asyncio.Queue()
        self._held = False
        self._put_off: list[_Item] = []
        """Ends that nobody refuses, due when the VM is held no more."""
        self._token_timer: asyncio.TimerHandle | None = None
        self._children: set[asyncio.Task[None]] = set()
        self._launching: asyncio.Task[None] | None = None
        self._launched: asyncio.Future[None] | None = None
        self._changes: list[asyncio.Future[None]] = []
        self._last_launch = 0.0
        self._rebooting = False
        self._powered_down = False
        self._expiry: asyncio.TimerHandle | None = None
        self._gone = False
        self._ended = False
        """Whether nobody takes anything out of the queue any more."""
        self._delete_error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Vm {self.ip} {self.state.text}>"

    # What anybody may read.

    @property
    def info(self) -> VmInfo:
        """The record that travels."""
        return self.record.vm_info

    @property
    def ip(self) -> str:
        """The primary address: the VM's name."""
        return self.record.vm_info.address.ip_address

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self.record.vm_info.state

    @property
    def layer(self) -> Layer:
        """How its file `ROOT` lies on disk; nothing is below what it has no more."""
        return Layer() if root_index(self.record) is None else self.agent.root

    @property
    def user_data(self) -> Path:
        """The file that the guest gets as its user data; there may be none."""
        return self.directory.user_data

    @property
    def credentials(self) -> Path:
        """The directory with what the guest gets as its identity; see identities.py."""
        return self.directory.path

    @property
    def gone(self) -> bool:
        """Whether it was deleted."""
        return self._gone

    @property
    def blocked(self) -> bool:
        """Whether something has the VM for a while; until then nobody may change it."""
        return self.in_creation or self._held

    def check_access(self, caller: Caller, token: bytes = b"") -> None:
        """Raises NoAccessError unless the caller has powers, owns the VM or has its token."""
        if caller.have_method_access or (caller.username and caller.username in self._owners()):
            return
        if len(self.access_token) >= TOKEN_BYTES and compare_digest(self.access_token, token):
            return
        if caller.groups.isdisjoint(self.info.owner_groups):
            raise NoAccessError

    def require_stopped(self) -> None:
        """Raises StateError."""
        if self.state is not State.STOPPED:
            raise StateError(text="VM is not stopped")

    def _owners(self) -> list[str]:
        return self.info.owner_users

    # What callers may ask for. All raise StateError for what the state does not allow.

    async def start(self) -> None:
        """Launch; returns when the machine is up. Raises what kept it from it."""
        await self._post(Event.START)
        if self._launched is not None:
            await asyncio.shield(self._launched)

    async def stop(self) -> None:
        """Ask the guest to stop, end it if it has not after 15 s; returns when it is stopped."""
        await self._post(Event.STOP)
        await self.until(lambda: self.state is not State.STOPPING)

    async def reboot(self) -> None:
        """Ask the guest to reboot; returns when it does. Raises DisobedientGuestError."""
        await (await self._post(Event.REBOOT))

    async def destroy(self) -> None:
        """End and delete it; returns when nothing is left. Raises DiskError."""
        await self._post_end(Event.DESTROY)

    async def expire(self) -> None:
        """As `destroy`, in any state and in spite of its protection: nobody knows of the VM."""
        if self._gone:
            return
        await self._post_end(Event.EXPIRE)

    async def find(self) -> None:
        """At start: take up what an earlier run left, as the table says.

        Returns when it was looked for; what follows from that comes before any later request.
        """
        search = await self._post(Event.FIND)
        if search is not None:
            await search

    async def damaged(self, error: Exception) -> None:
        """At start: its volumes are not what its record says."""
        _log.error("%s: %s", self.ip, describe(error))
        self.error = error
        await self._post(Event.DAMAGED)

    def end_creation(self) -> None:
        """The create is over: callers may have the VM."""
        self.in_creation = False
        if self._powered_down and self.state is State.STOPPED:
            self._put(Event.DESTROY)

    def expire_after(self, seconds: float) -> None:
        """Destroy the VM then unless `acknowledge` comes first."""
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire_now)

    async def acknowledge(self) -> None:
        """The creator knows the VM: it stays. May be repeated. Raises DiskError.

        Too late when its time is over: then it is being destroyed, or gone.
        """
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        await self._post(Event.ACKNOWLEDGE)

    async def replace_user_data(self, store: Callable[[Path], Awaitable[None]]) -> None:
        """New user data, written by ``store`` into the file it is given. Raises what ``store``
        raises, and OSError; then the former user data stay."""
        new = self.directory.new_user_data
        try:
            await store(new)
            await asyncio.to_thread(self.directory.swap_user_data)
        finally:
            new.unlink(missing_ok=True)

    # Changing what it is.

    async def apply(
        self, work: Callable[[], Awaitable[T]], *, stopped: bool = False, holding: bool = False
    ) -> T:
        """Have the VM's task do something short between two events; what comes of it.

        ``stopped``: only while the VM is; ``holding``: by whom holds it. Raises StateError,
        BlockedError, NoVmError, and what ``work`` raises.
        """
        if self._gone or self._ended:
            raise NoVmError(ip=self.ip)
        accepted: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Work(work, accepted, stopped, holding))
        return await accepted

    async def change(
        self,
        edit: Callable[[LocalVmInfo], None],
        *,
        stopped: bool = False,
        holding: bool = False,
    ) -> None:
        """Have the record edited, a copy of it: on disk, then for everybody. See `apply`.

        Not to be cut short: who is cancelled meanwhile finds the record changed, or not to be.
        Raises DiskError, and what ``edit`` raises; then nothing has changed.
        """

        async def work() -> None:
            await self.replace_record(edit)

        await outlast(self.apply(work, stopped=stopped, holding=holding))

    async def replace_record(self, edit: Callable[[LocalVmInfo], None]) -> None:
        """As `change`, from within the ``work`` of `apply`."""
        record = deepcopy(self.record)
        edit(record)
        if record == self.record:
            return
        await self._write(record)
        self.record = record
        self._tell()

    @asynccontextmanager
    async def hold(self, *, stopped: bool = False) -> AsyncIterator[None]:
        """Have the VM for oneself: others read it, and are refused what would change it.

        Raises StateError, BlockedError, NoVmError.
        """

        taken = False

        async def take() -> None:
            nonlocal taken
            self._held = taken = True

        try:
            # Outlasted: what is in the queue is done, whether anybody still waits for it or not.
            await outlast(self.apply(take, stopped=stopped))
            yield
        finally:
            if taken:
                self._held = False
                put_off, self._put_off = self._put_off, []
                for item in put_off:
                    self._queue.put_nowait(item)

    def grant_token(self, token: bytes, seconds: float) -> None:
        """Who has this token has the VM, for so long. Raises StateError while one is out."""
        if self.access_token:
            raise StateError(text="someone else has the access token")
        self.access_token = token
        self._token_timer = asyncio.get_running_loop().call_later(seconds, self.discard_token)

    def discard_token(self) -> None:
        """It is worth nothing any more."""
        self.access_token = b""
        if self._token_timer is not None:
            self._token_timer.cancel()
            self._token_timer = None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, looking after every change of state, or it is gone."""
        while not condition() and not self._gone:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changes.append(future)
            await future

    # The task.

    def begin(self) -> "asyncio.Task[None]":
        """Start the task; it ends with the VM, or by being cancelled (the machine runs on)."""
        return asyncio.create_task(self.run(), name=f"vm {self.ip}")

    async def run(self) -> None:
        """Take requests and news until the VM is gone."""
        try:
            while not self._gone:
                item = await self._queue.get()
                try:
                    if isinstance(item, _Work):
                        await self._do(item)
                    else:
                        await self._handle(item)
                except Exception as error:
                    self._fail(item, error)
                except asyncio.CancelledError:
                    # The agent ends; whoever outlasts this must not wait for ever.
                    self._fail(item, NoVmError(ip=self.ip))
                    raise
        finally:
            await self._close()

    async def save(self) -> None:
        """Write the record. Raises DiskError."""
        await self._write(self.record)

    async def _write(self, record: LocalVmInfo) -> None:
        data = to_json(record)
        try:
            await asyncio.to_thread(self.directory.write, data, sync=self.durable)
        except OSError as error:
            raise DiskError(path=self.directory.path, detail=describe(error)) from error

    async def _do(self, item: _Work) -> None:
        if item.accepted.cancelled():
            return  # who asked for it has given up, and may have asked for something else since
        if self._held and not item.holding:
            raise BlockedError
        if item.stopped:
            self.require_stopped()
        if self.state is State.DESTROYING:
            raise StateError(text="VM is destroying")
        result = await item.work()
        if not item.accepted.done():
            item.accepted.set_result(result)

    async def _handle(self, item: _Item) -> None:
        if self._held:
            if item.event in PUT_OFF and (item.accepted is None or item.event is Event.EXPIRE):
                self._put_off.append(item)
                return
            if item.event in REQUESTS and item.event is not Event.ACKNOWLEDGE:
                raise BlockedError
        found = rule(self.state, item.event)
        if found.refusal:
            raise StateError(text=found.refusal)
        if item.event is Event.DESTROY and self._is_protected(found.action):
            raise StateError(text="cannot destroy running VM when protected")
        if item.error is not None:
            self.error = item.error
        self._rebooting = item.event is Event.GUEST_REBOOT
        if found.state is not None and found.state is not self.state:
            await self._enter(found.state, item.event)
        result = await self._act(found.action)
        self._settle_launch(item.event)
        if item.accepted is not None and not item.accepted.done():
            item.accepted.set_result(result)

    def _is_protected(self, action: Action) -> bool:
        return action is Action.QUIT and self.info.destroy_protection

    async def _act(self, action: Action) -> Any:
        match action:
            case Action.LAUNCH:
                self._launched = _quiet_future()
                self._launching = self._spawn(self._launch())
            case Action.SEARCH:
                return self._spawn(self._search())
            case Action.ASK_STOP:
                self._spawn(self._ask_stop())
            case Action.ASK_REBOOT:
                return self._spawn_reboot()
            case Action.QUIT:
                self._quit()
            case Action.DELETE:
                await self._delete()
            case Action.KEEP:
                await self._keep()
            case Action.POWERED_DOWN:
                if self.info.destroy_on_powerdown and not self.info.destroy_protection:
                    self._powered_down = True
                    if not self.in_creation:
                        self._put(Event.DESTROY)
            case Action.NOTHING:
                pass
        return None

    async def _enter(self, state: State, event: Event) -> None:
        """Change the state, in memory and on disk."""
        before, since = self.info.state, self.info.changed_state_on
        _log.info("%s: %s ──%s──► %s", self.ip, before.text, event.value, state.text)
        self.info.state = state
        self.info.changed_state_on = Time.now()
        if state is State.RUNNING:
            # Nobody who waits for the launch needs this write: without it a start finds the VM
            # starting, and its machine.
            self._settle_launch(event)
            self._tell()
        try:
            if event is not Event.DAMAGED:  # that is for those who look; disk says what is wanted
                await self.save()
        except DiskError as error:
            if event is Event.START:
                self.info.state, self.info.changed_state_on = before, since
                raise
            _log.warning("%s", error)
        self._tell()

    def _settle_launch(self, event: Event) -> None:
        launched = self._launched
        if launched is None or launched.done():
            return
        if event is Event.UP and self.state is State.RUNNING:
            launched.set_result(None)
        elif event is Event.UP:  # it came up while it was being given up
            launched.set_exception(StateError(text=f"VM is {self.state.text}"))
        elif event is Event.FAILED:
            launched.set_exception(self.error or StateError(text="VM failed to start"))

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._rebooting:
                # A bound on how often a guest can have this done, not a wait for anything.
                await asyncio.sleep(self._last_launch + RELAUNCH_INTERVAL - loop.time())
            self._last_launch = loop.time()
            if not self.in_creation:
                self.timeline = Timeline()
            machine = await self.runtime.launch(self)
        except asyncio.CancelledError:
            self._put(Event.FAILED, StateError(text="VM is destroying"))
            raise
        except Exception as error:
            _log.warning("%s: cannot be started: %s", self.ip, describe(error))
            self._put(Event.FAILED, error)
        else:
            self._attach(machine)
        finally:
            self._launching = None

    async def _search(self) -> None:
        try:
            machine = await self.runtime.find(self)
        except Exception as error:
            # It may be there: another must not be launched on its disks.
            _log.error("%s: cannot be looked for: %s", self.ip, describe(error))
            self._put(Event.CRASHED, error)
            return
        if machine is None:
            self._put(Event.LOST)
        else:
            self._put(Event.FOUND)
            self._attach(machine)

    def _attach(self, machine: Machine) -> None:
        self.machine = machine
        self._spawn(self._watch(machine))

    async def _watch(self, machine: Machine) -> None:
        """Pass on what becomes of the machine."""
        error: Exception | None = None
        try:
            await machine.started()
        except MachineError as failure:
            error = failure
        else:
            self._put(Event.UP)
        reason = await machine.wait()
        try:
            await self.runtime.ended(self, reason)
        except Exception as failure:
            _log.warning("%s: its network: %s", self.ip, describe(failure))
        # Not before: as long as its network is being taken down nobody may launch another.
        self.machine = None
        self._put(_END_EVENTS[reason], error or machine.error)

    async def _ask_stop(self) -> None:
        if self.machine is None:
            self._put(Event.LOST)
        else:
            await self.machine.stop(STOP_TIMEOUT)

    def _spawn_reboot(self) -> "asyncio.Task[None]":
        machine = self.machine
        if machine is None:
            raise StateError(text="VM has crashed")
        return self._spawn(machine.reboot())

    def _quit(self) -> None:
        if self.machine is not None:
            self._spawn(_ignoring(self.machine.quit()))
        elif self._launching is not None:
            self._launching.cancel()
        else:
            self._put(Event.LOST)

    async def _keep(self) -> None:
        try:
            await asyncio.to_thread(self.directory.acknowledge)
        except OSError as error:
            raise DiskError(path=self.directory.path, detail=describe(error)) from error

    async def _delete(self) -> None:
        try:
            await self.runtime.delete(self)
        except Exception as error:
            # Disk still says "destroying": a restart tries again, and so may the caller.
            _log.error("%s: cannot be deleted: %s", self.ip, describe(error))
            self._delete_error = error
            self.info.state = State.CRASHED
        else:
            self._gone = True
        self._tell()

    async def _post_end(self, event: Event) -> None:
        self._delete_error = None  # that of an earlier attempt says nothing of this one
        await self._post(event)
        await self.until(lambda: self._delete_error is not None)
        if self._delete_error is not None:
            raise DiskError(
                path=self.directory.path, detail=describe(self._delete_error)
            ) from self._delete_error

    async def _post(self, event: Event) -> Any:
        """Put a request into the queue and wait until it is accepted. Raises its refusal."""
        if self._gone or self._ended:
            raise NoVmError(ip=self.ip)
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Item(event, accepted))
        return await accepted

    def _put(self, event: Event, error: Exception | None = None) -> None:
        self._queue.put_nowait(_Item(event, error=error))

    def _fail(self, item: _Item | _Work, error: Exception) -> None:
        if item.accepted is not None:
            if not item.accepted.done():
                item.accepted.set_exception(error)
        elif isinstance(item, _Item) and not isinstance(error, StateError):
            _log.error("%s: %s: %s", self.ip, item.event.value, describe(error))

    def _expire_now(self) -> None:
        _log.warning("%s: VM was not acknowledged, destroying", self.ip)
        self._expiry = None
        self._put(Event.EXPIRE)

    def _tell(self) -> None:
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)
        self.runtime.changed(self)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._children.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._children.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("%s: %s", self.ip, describe(error))

    async def _close(self) -> None:
        """End every task beside this one; whoever waits in the queue is told."""
        self._ended = True
        self.discard_token()
        if self._expiry is not None:
            self._expiry.cancel()
        children = [task for task in self._children if not task.done()]
        for task in children:
            task.cancel()
        if children:
            await asyncio.wait(children)
        if self.machine is not None:
            await self.machine.release()
        left: list[_Item | _Work] = [*self._put_off]
        while not self._queue.empty():
            left.append(self._queue.get_nowait())
        for item in left:
            if item.accepted is not None and not item.accepted.done():
                item.accepted.set_exception(NoVmError(ip=self.ip))


async def _ignoring(work: Coroutine[Any, Any, object]) -> None:
    await work


def _quiet_future() -> "asyncio.Future[None]":
    """A future whose exception need not be looked at by anybody."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
