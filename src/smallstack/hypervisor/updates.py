"""What changes here, told to whoever watches: `GetUpdates`.

A watcher is told the whole state, then what has changed since, as it is when it is told: between
two messages a watch keeps the names of what changed and nothing else, so that one who reads slowly
costs no memory, misses no last state, and is never turned away.

::

    VM, pool, subnet, disabled ──► names ──► 10 ms without news ──► one Update
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smallstack.network.book import Change
from smallstack.proto.enums import ArchitectureType
from smallstack.proto.hypervisor.host import Update
from smallstack.proto.vm import VmInfo

if TYPE_CHECKING:
    from smallstack.hypervisor.agent import Agent
    from smallstack.hypervisor.vm import Vm

SETTLE: Final = 0.01
"""Seconds without news before it is told: one event seldom comes alone."""
SETTLE_MOST: Final = 0.1
"""Seconds after which it is told in any case."""
HEARTBEAT: Final = 15 * 60.0
"""Seconds without news after which a message is sent all the same."""
_SERIAL: Final = Path("/sys/class/dmi/id/product_serial")


class Watch:
    """What one watcher has not been told yet."""

    def __init__(self, updates: "Updates") -> None:
        """Use `Updates.watch`."""
        self._updates = updates
        self._known: set[str] = set()
        self._vms: set[str] = set()
        self._pool = self._counts = self._subnets = self._disabled = False
        self._news = asyncio.Event()
        self.closed = False

    def note_vm(self, ip: str) -> None:
        """A VM has changed, or is gone."""
        self._vms.add(ip)
        self._news.set()

    def note_book(self, change: Change) -> None:
        """So have addresses or subnets."""
        self._counts = True
        self._pool = self._pool or change.registered is not None
        self._subnets = self._subnets or change.subnets is not None
        self._news.set()

    def note_disabled(self) -> None:
        """So has whether VMs may be created and started."""
        self._disabled = True
        self._news.set()

    def close(self) -> None:
        """There will be no more news."""
        self.closed = True
        self._news.set()

    def everything(self) -> Update:
        """The whole state."""
        agent = self._updates.agent
        ledger = agent.parts.ledger
        self._vms = set(agent.vms)
        self._pool = self._counts = self._subnets = self._disabled = True
        update = self._take()
        update.have_vms = True
        update.architecture_type = ArchitectureType.AMD64
        update.memory_in_mib = ledger.host.memory_mib
        update.num_cpus = ledger.host.milli_cpus // 1000
        update.have_serial_number = True
        update.serial_number = self._updates.serial
        update.total_volume_bytes = ledger.total_volume_bytes()
        return update

    async def next(self) -> Update | None:
        """What has changed, as soon as something has, or nothing after a long while; None: no
        more."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), HEARTBEAT)
            loop = asyncio.get_running_loop()
            latest = loop.time() + SETTLE_MOST
            while not self.closed and (left := latest - loop.time()) > 0:
                self._news.clear()
                await asyncio.wait_for(self._news.wait(), min(SETTLE, left))
        return None if self.closed else self._take()

    def _take(self) -> Update:
        agent, book = self._updates.agent, self._updates.agent.parts.book
        update = Update(available_memory_in_mib=agent.parts.ledger.host.available_mib())
        for ip in self._vms:
            vm = agent.vms.get(ip)
            # Without volumes it would be taken for one that is gone.
            if vm is not None and not vm.gone and vm.info.volumes:
                update.vms[ip] = vm.info
                self._known.add(ip)
            elif ip in self._known:
                update.vms[ip] = VmInfo()
                self._known.remove(ip)
        update.have_vms = bool(update.vms)
        if self._counts:
            update.num_free_addresses = dict(book.pool.free_counts(book.subnets))
        if self._pool:
            update.have_address_pool = True
            update.address_pool = list(book.pool.registered)
        if self._subnets:
            update.have_subnets = True
            update.subnets = book.subnets.reported()
        if self._disabled:
            update.have_disabled = True
            update.disabled = agent.parts.store.disabled
        self._vms = set()
        self._pool = self._counts = self._subnets = self._disabled = False
        self._news.clear()
        return update


class Updates:
    """All who watch."""

    def __init__(self, agent: "Agent") -> None:
        self.agent = agent
        self.serial = _serial()
        self._watches: set[Watch] = set()
        self._closed = False
        agent.on_change.append(self._vm_changed)
        agent.parts.book.on_change.append(self._book_changed)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """A new watcher."""
        watch = Watch(self)
        self._watches.add(watch)
        if self._closed:
            watch.close()
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    def disabled_changed(self) -> None:
        """Whether VMs may be created and started has changed."""
        for watch in self._watches:
            watch.note_disabled()

    def note_gone(self, ip: str) -> None:
        """There is no VM of that address any more."""
        for watch in self._watches:
            watch.note_vm(ip)

    def close(self) -> None:
        """The agent ends: so does every stream."""
        self._closed = True
        for watch in self._watches:
            watch.close()

    def _vm_changed(self, vm: "Vm") -> None:
        for watch in self._watches:
            watch.note_vm(vm.ip)

    def _book_changed(self, change: Change) -> None:
        for watch in self._watches:
            watch.note_book(change)


def _serial() -> str:
    try:
        return _SERIAL.read_text(errors="replace").strip()
    except OSError:
        return ""
