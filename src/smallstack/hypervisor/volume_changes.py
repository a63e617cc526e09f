"""Changing the volumes of a stopped VM: more of them, fewer, in another order, larger, elsewhere.

The record says which files are the VM's volumes, in which order; a file's name says nothing, but
that `ROOT` may be a layer. So a change is one write of the record, and a crash leaves what was or
what is to be::

    new file, synced ──► record ──► old file removed

What a crash leaves over is removed at the next start (see strays.py). A raw volume without a
partition table grows in place; any other is written anew. In place the file system on it grows
behind the record: what is cut short there is left to the guest's own check of it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final, Literal

from smallstack.durable import sync_directory
from smallstack.hypervisor.agent import Agent
from smallstack.hypervisor.errors import RequestError, SpaceError
from smallstack.hypervisor.ledger import effective_size
from smallstack.hypervisor.roots import KERNEL, full_disk
from smallstack.hypervisor.store import ROOT, SECONDARY, snapshot_name
from smallstack.hypervisor.vm import Vm
from smallstack.outlast import outlast
from smallstack.proto.enums import VolumeFormat, VolumeType
from smallstack.proto.vm import LocalVmInfo, LocalVolume, Volume
from smallstack.volumes.copying import copy_disk
from smallstack.volumes.errors import ResizeError
from smallstack.volumes.resize import (
    BLOCK,
    FileSystemPlace,
    find_file_system,
    grow_file_system,
    set_size,
    shrink_file_system,
)

SECTOR: Final = 512
MAX_VOLUMES: Final = 16
"""Of one VM: q35 has places for some more devices, its network interfaces among them."""
MAX_SIZE: Final = 1 << 62

Edit = Callable[[LocalVmInfo], None]


class VolumeChanges:
    """Operations on one VM's volumes. Each holds the VM, which has to be stopped."""

    def __init__(self, agent: Agent, vm: Vm) -> None:
        self._agent = agent
        self._ledger = agent.parts.ledger
        self._vm = vm

    async def add(self, sizes: Sequence[int]) -> None:
        """Empty volumes behind the others, bytes each.

        Raises RequestError, SpaceError, DiskFullError, DiskError, StateError.
        """
        rounded = [-(-size // SECTOR) * SECTOR for size in sizes]
        if not all(0 < size <= MAX_SIZE for size in rounded):
            raise RequestError(detail=f"a volume has 1 to {MAX_SIZE} bytes")
        async with self._vm.hold(stopped=True):
            if len(self._vm.info.volumes) + len(rounded) > MAX_VOLUMES:
                raise RequestError(detail=f"a VM has {MAX_VOLUMES} volumes at most")
            places = [
                (self._new_file(directory, SECONDARY, number), size)
                for number, (directory, size) in enumerate(await self._place(rounded))
            ]

            def edit(record: LocalVmInfo) -> None:
                for path, size in places:
                    record.vm_info.volumes.append(Volume(size=size))
                    record.volume_locations.append(_location(path))

            async with self._files(places):
                for path, size in places:
                    with full_disk(path):
                        await asyncio.to_thread(_make_empty, path, size)
                await self._change(edit)

    async def delete(self, index: int) -> None:
        """One volume, which is not the first. Raises RequestError, DiskError, StateError."""
        async with self._vm.hold(stopped=True):
            self._check_index(index)
            if index == 0:
                raise RequestError(detail="cannot delete root volume")
            path = self._path(index)
            snapshots = self._snapshots(index)

            def edit(record: LocalVmInfo) -> None:
                del record.vm_info.volumes[index]
                del record.volume_locations[index]

            await self._change(edit)
            await asyncio.to_thread(_remove, [path, *snapshots])

    async def reorder(self, indices: Sequence[int]) -> None:
        """Have them in this order of their present indices; without 0 the first one stays first.

        Raises RequestError, DiskError, StateError.
        """
        async with self._vm.hold(stopped=True):
            order = list(indices) if 0 in indices else [0, *indices]
            if sorted(order) != list(range(len(self._vm.info.volumes))):
                raise RequestError(
                    detail=f"the new order has to name each of {len(order)} volumes once"
                )
            if order[0] != 0 and self._path(0).with_name(KERNEL).exists():
                raise RequestError(
                    detail="the root has to stay first: the VM boots a kernel beside it"
                )

            def edit(record: LocalVmInfo) -> None:
                volumes, locations = record.vm_info.volumes, record.volume_locations
                record.vm_info.volumes = [volumes[index] for index in order]
                record.volume_locations = [locations[index] for index in order]

            await self._change(edit)

    async def resize(self, index: int, size: int) -> None:
        """Give a volume so many bytes, and the file system on it; see `volumes.resize`.

        Raises RequestError, SpaceError, ResizeError, DiskError, StateError. When the file system
        cannot be made larger in place, the volume is larger all the same.
        """
        size = -(-size // BLOCK) * BLOCK
        if not 0 < size <= MAX_SIZE:
            raise RequestError(detail=f"a volume has 1 to {MAX_SIZE} bytes")
        async with self._vm.hold(stopped=True):
            self._check_index(index)
            volume = self._vm.info.volumes[index]
            if volume.format is not VolumeFormat.RAW or volume.type is not VolumeType.PERSISTENT:
                raise RequestError(detail="only a raw volume on disk can be resized")
            if self._snapshots(index):
                raise RequestError(detail="the volume has snapshots: discard them first")
            if size == volume.size:
                return
            layered = self._is_layered(index)
            place = None if layered else await self._file_system(index)
            partitioned = place is not None and place.entry is not None
            if size > volume.size and not layered and not partitioned:
                await self._grow_in_place(index, size, place)
            else:
                await self._write_anew(index, size, "qcow2" if layered else "raw")

    async def move(self, index: int, storage: int) -> None:
        """Have a volume's file in another volume directory.

        Raises RequestError, StorageIndexError, DiskError, StateError.
        """
        async with self._vm.hold(stopped=True):
            self._check_index(index)
            old = self._path(index)
            if self._snapshots(index):
                raise RequestError(detail="the volume has snapshots: discard them first")
            if index == 0 and old.with_name(KERNEL).exists():
                raise RequestError(detail="the VM boots a kernel beside its root: both stay there")
            size = effective_size(self._vm.info.volumes[index])
            if storage < len(self._ledger.directories) and (
                self._ledger.directories[storage] == old.parent.parent
            ):
                return
            ((directory, _),) = self._ledger.place_more(self._vm.ip, [size], index=storage)
            # A layer would leave its brick behind: it is written anew as a disk of its own.
            layered = self._is_layered(index)
            new = self._new_file(directory, f"{ROOT}." if index == 0 else SECONDARY)
            async with self._files([(new, size)]):
                with full_disk(new):
                    await copy_disk(old, new, "qcow2" if layered else "raw")

                def edit(record: LocalVmInfo) -> None:
                    record.volume_locations[index] = _location(new)

                await self._change(edit)
            await asyncio.to_thread(_remove, [old])

    # How it is done.

    async def _file_system(self, index: int) -> FileSystemPlace | None:
        """What is on a raw volume."""
        path, size = self._path(index), self._vm.info.volumes[index].size

        def look() -> FileSystemPlace | None:
            with path.open("rb") as file:
                return find_file_system(file.fileno(), size)

        with full_disk(path):
            return await asyncio.to_thread(look)

    async def _grow_in_place(self, index: int, size: int, place: FileSystemPlace | None) -> None:
        path, before = self._path(index), self._vm.info.volumes[index].size
        directory = path.parent.parent
        try:
            self._ledger.check_space(directory, size - before)
        except SpaceError:
            await self._agent.make_room([size - before], directory)
            self._ledger.check_space(directory, size - before)

        def edit(record: LocalVmInfo) -> None:
            record.vm_info.volumes[index].size = size

        fd = await asyncio.to_thread(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with full_disk(path):
                await asyncio.to_thread(set_size, fd, size)
            try:
                await self._change(edit)
            except BaseException:
                await outlast(asyncio.to_thread(set_size, fd, before))
                raise
            if place is not None:
                with full_disk(path):
                    await grow_file_system(fd, place, size, self._user(), path.name)
        finally:
            os.close(fd)

    async def _write_anew(self, index: int, size: int, kind: Literal["raw", "qcow2"]) -> None:
        old, before = self._path(index), self._vm.info.volumes[index].size
        directory = old.parent.parent
        stem = f"{ROOT}." if index == 0 or old.name.startswith(ROOT) else SECONDARY
        new = self._new_file(directory, stem, first=1)
        async with self._files([(new, max(size, before))]):
            with full_disk(new):
                await copy_disk(old, new, kind)
                await self._fit(new, before, size)

            def edit(record: LocalVmInfo) -> None:
                record.vm_info.volumes[index].size = size
                record.volume_locations[index] = _location(new)

            await self._change(edit)
        await asyncio.to_thread(_remove, [old])

    async def _fit(self, path: Path, before: int, size: int) -> None:
        """Give a file of our own another size."""
        fd = await asyncio.to_thread(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        try:
            place = await asyncio.to_thread(find_file_system, fd, before)
            if place is None:
                if size < before:
                    raise ResizeError(
                        name=path.name,
                        detail="it has no ext2, 3 or 4 file system that could be made smaller",
                    )
                await outlast(asyncio.to_thread(set_size, fd, size))
            elif size > before:
                await grow_file_system(fd, place, size, self._user(), path.name)
            else:
                await shrink_file_system(path, fd, place, size, self._user(), path.name)
        finally:
            os.close(fd)

    async def _place(self, sizes: Sequence[int]) -> list[tuple[Path, int]]:
        try:
            return self._ledger.place_more(self._vm.ip, sizes)
        except SpaceError:
            await self._agent.make_room(sizes)
            return self._ledger.place_more(self._vm.ip, sizes)

    @asynccontextmanager
    async def _files(self, files: Sequence[tuple[Path, int]]) -> AsyncIterator[None]:
        """Room for files that are being made; they go again unless the record has them then."""
        paths = [path for path, _ in files]
        try:
            for path, size in files:
                await self._expect(path, size)
                await asyncio.to_thread(path.parent.mkdir, 0o700, exist_ok=True)
            yield
        finally:
            named = {location.filename for location in self._vm.record.volume_locations}
            for path in paths:
                self._ledger.complete(path)
            left = [path for path in paths if str(path) not in named]
            await outlast(asyncio.to_thread(_remove, left))

    async def _expect(self, path: Path, size: int) -> None:
        directory = path.parent.parent
        try:
            self._ledger.expect(directory, path, size)
        except SpaceError:
            await self._agent.make_room([size], directory)
            self._ledger.expect(directory, path, size)

    async def _change(self, edit: Edit) -> None:
        """Change the record, and what is promised with it."""
        await self._vm.change(edit, stopped=True, holding=True)
        self._ledger.adopt(self._vm.record)

    def _check_index(self, index: int) -> None:
        volumes = len(self._vm.info.volumes)
        if index >= volumes:
            raise RequestError(detail=f"there is no volume {index}: the VM has {volumes}")

    def _path(self, index: int) -> Path:
        return Path(self._vm.record.volume_locations[index].filename)

    def _is_layered(self, index: int) -> bool:
        return bool(self._vm.layer.backing) and self._path(index).name == ROOT

    def _snapshots(self, index: int) -> list[Path]:
        path = self._path(index)
        names = self._vm.info.volumes[index].snapshots
        return [path.with_name(snapshot_name(path.name, name)) for name in names]

    def _new_file(self, directory: Path, stem: str, skip: int = 0, first: int = 0) -> Path:
        """A name that no volume has; ``skip`` of them are spoken for."""
        place = directory / self._vm.ip
        free = (place / f"{stem}{number}" for number in count(first))
        found = (path for path in free if not path.exists())
        for _ in range(skip):
            next(found)
        return next(found)

    def _user(self) -> tuple[int, int] | None:
        uid, gid = self._agent.parts.emulator.user(self._vm.agent.slot)
        return (uid, gid) if uid is not None and gid is not None else None


def _location(path: Path) -> LocalVolume:
    return LocalVolume(directory_to_cleanup=str(path.parent), filename=str(path))


def _make_empty(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        set_size(fd, size)
    finally:
        os.close(fd)
    sync_directory(path.parent)


def _remove(paths: Sequence[Path]) -> None:
    """Files, and their directories if they are empty then."""
    for path in paths:
        path.unlink(missing_ok=True)
    for directory in {path.parent for path in paths}:
        try:
            directory.rmdir()
        except OSError:  # there is something in it
            sync_directory(directory)
