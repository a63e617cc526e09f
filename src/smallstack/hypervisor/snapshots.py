"""Snapshots of a VM's volumes: copies beside them, which share blocks where the file system can.

A layer's snapshot is a copy of the layer: it needs the same brick. What is there is told from the
files: at start the records' maps are made anew.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from smallstack.durable import sync_directory
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.errors import RequestError, SpaceError, StateError
from smallstack.hypervisor.roots import full_disk
from smallstack.hypervisor.store import ROOT, snapshot_name
from smallstack.hypervisor.strays import scan_snapshots
from smallstack.hypervisor.vm import Vm
from smallstack.outlast import outlast
from smallstack.proto.enums import State
from smallstack.proto.vm import LocalVmInfo
from smallstack.volumes.copying import copy_disk

MAX_NAME: Final = 64
"""Characters of a snapshot's name."""
_AT_REST: Final = (State.STOPPED, State.FAILED_TO_START, State.CRASHED)


class Snapshots:
    """Operations on the snapshots of one VM. Each holds the VM."""

    def __init__(self, agent: Agent, vm: Vm) -> None:
        self._agent = agent
        self._ledger = agent.parts.ledger
        self._vm = vm

    async def take(self, name: str, *, force: bool, root_only: bool) -> None:
        """Copy every volume, or the first; one of that name is replaced, once all is copied.

        ``force``: though the VM is not stopped; but a layer, or what QEMU has in its memory of it,
        makes no disk while it is written. Raises RequestError, StateError, SpaceError,
        DiskFullError, DiskError.
        """
        check_name(name)
        async with self._held(force):
            paths = self._paths()[: 1 if root_only else None]
            running = self._vm.state not in _AT_REST
            if running and self._vm.layer.backing and any(path.name == ROOT for path in paths):
                raise StateError(
                    text="VM is not stopped: its root is a layer that is being written"
                )
            copies = [path.with_name(snapshot_name(path.name, name)) for path in paths]
            parts = [copy.with_name(copy.name + "~") for copy in copies]
            try:
                await self._expect(paths, parts)
                for path, part in zip(paths, parts, strict=True):
                    with full_disk(part):
                        await copy_disk(path, part)
                for part, copy in zip(parts, copies, strict=True):
                    await asyncio.to_thread(_rename, part, copy)
            finally:
                for part in parts:
                    self._ledger.complete(part)
                await outlast(asyncio.to_thread(_remove, parts))
                await self._scan()

    async def restore(self, name: str, *, force: bool, retain: bool) -> None:
        """Put the copies back in their volumes' places; volumes without one stay as they are.

        ``retain``: keep the copies. ``force``: also of a VM that failed or crashed. Raises
        RequestError, StateError, DiskFullError, DiskError.
        """
        check_name(name)
        async with self._held(force):
            if self._vm.state not in _AT_REST:
                raise StateError(text="VM is not stopped")
            found = self._found(name)
            if not found:
                raise _missing(name)
            for copy, path in found:
                info = self._vm.info.volumes[self._paths().index(path)]
                layered = path.name == ROOT and bool(self._vm.layer.backing)
                if not layered and copy.stat().st_size != info.size:
                    raise RequestError(
                        detail=f"snapshot {copy.name} has {copy.stat().st_size} bytes, the volume "
                        f"{info.size}: give the volume that size first"
                    )
            try:
                for copy, path in found:
                    with full_disk(path):
                        if retain:
                            await copy_disk(copy, path)
                        else:
                            await asyncio.to_thread(_rename, copy, path)
            finally:
                await self._scan()

    async def discard(self, name: str) -> None:
        """Delete the copies. Raises RequestError, DiskError."""
        check_name(name)
        async with self._held(True):
            found = self._found(name)
            if not found:
                raise _missing(name)
            with full_disk(self._paths()[0]):
                await asyncio.to_thread(_remove, [copy for copy, _ in found])
            await self._scan()

    @asynccontextmanager
    async def _held(self, force: bool) -> AsyncIterator[None]:
        async with self._vm.hold(stopped=not force):
            yield

    async def _expect(self, paths: Iterable[Path], parts: Iterable[Path]) -> None:
        """Room for all copies before the first is made."""
        for path, part in zip(paths, parts, strict=True):
            size = path.stat().st_size
            try:
                self._ledger.expect(path.parent.parent, part, size)
            except SpaceError:
                await self._agent.make_room([size], path.parent.parent)
                self._ledger.expect(path.parent.parent, part, size)

    async def _scan(self) -> None:
        record = self._vm.record
        found = await outlast(asyncio.to_thread(scan_snapshots, record))

        def edit(record: LocalVmInfo) -> None:
            for volume, snapshots in zip(record.vm_info.volumes, found, strict=False):
                volume.snapshots = snapshots

        await self._vm.change(edit, holding=True)

    def _paths(self) -> list[Path]:
        return [Path(location.filename) for location in self._vm.record.volume_locations]

    def _found(self, name: str) -> list[tuple[Path, Path]]:
        """Each copy of that name with its volume."""
        pairs = [(path.with_name(snapshot_name(path.name, name)), path) for path in self._paths()]
        return [(copy, path) for copy, path in pairs if copy.exists()]


def check_name(name: str) -> None:
    """Raises RequestError."""
    if len(name) > MAX_NAME or any(char in "./:~" or not char.isprintable() for char in name):
        raise RequestError(
            detail=f"a snapshot's name has {MAX_NAME} characters at most, and none of . : / ~"
        )


def _missing(name: str) -> RequestError:
    return RequestError(detail=f"the VM has no snapshot {name!r}")


def _rename(source: Path, target: Path) -> None:
    source.rename(target)
    sync_directory(target.parent)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
