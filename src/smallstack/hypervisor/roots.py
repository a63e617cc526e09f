"""Root volumes: from an image to what a guest boots from, in the VM's own volume directory.

::

    image ─► objects that lack ─► brick (once per image and size) ─► layer, kernel, initrd

When the brick is there already, only the boot files' objects are needed. Kernel and initrd are
hard links to the cache's files where they can be: QEMU only reads them. A VM that is booted by a
boot loader has neither; the loader is in the brick, and what it boots stands in the image's
/boot/grub/grub.cfg, or in one that is written into the layer when the image has none.
"""

import asyncio
import errno
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from smallstack import steps
from smallstack.hypervisor.errors import DiskError, DiskFullError, ImageTreeError
from smallstack.hypervisor.images import Images, KnownImage
from smallstack.hypervisor.store import Layer
from smallstack.images.container import INIT
from smallstack.machine.errors import KernelError
from smallstack.machine.kernel import BootFiles, find_kernel
from smallstack.objects.cache import ObjectCache
from smallstack.objects.errors import ObjectNotStoredError, StoreSpaceError
from smallstack.objects.place import Place
from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem
from smallstack.telemetry.errors import SmallStackError, describe
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes.bootloader import BootLoader, BootLoaders
from smallstack.volumes.brick import Brick, BrickStore, brick_key
from smallstack.volumes.errors import CorruptObjectError, LayerFullError
from smallstack.volumes.foreign.sparse import SparseFile
from smallstack.volumes.grub_config import GRUB_CONFIG, grub_config
from smallstack.volumes.layer import (
    LayerInfo,
    create_layer,
    create_plain_layer,
    fstab_line,
    root_label,
)
from smallstack.volumes.partition import scheme_of
from smallstack.volumes.size import root_size

_log = logging.getLogger("smallstack.hypervisor")
KERNEL = "kernel"
INITRD = "initrd"
BRICKS = "bricks"


@dataclass(frozen=True)
class RootWanted:
    """What a VM's root is to be."""

    image: KnownImage
    size: int
    """Bytes of the whole disk."""
    path: Path
    label: str
    firmware: FirmwareType
    directories: Sequence[str]
    files: Mapping[str, bytes]
    options: Callable[[bool], str] | None = None
    """Through a boot loader: what the kernel is told, given whether there is an initrd; None: the
    kernel is booted directly."""


def size_of(
    image: KnownImage,
    minimum_free_bytes: int,
    roundup_power: int,
    firmware: FirmwareType = FirmwareType.DEFAULT,
) -> int:
    """Bytes of the root disk. Raises RootTooLargeError when no free space is asked for."""
    usage = image.tree.usage_estimate()
    return root_size(usage, minimum_free_bytes, roundup_power, firmware=firmware)


def label_of(ip: str) -> str:
    """The label of a VM's root file system."""
    return root_label(bytes(map(int, ip.split("."))))


class Roots:
    """The bricks of every volume directory, and the layers made over them."""

    def __init__(
        self,
        directories: Iterable[Path],
        cache: ObjectCache,
        images: Images,
        loaders: BootLoaders,
    ) -> None:
        """Blocks. Raises VolumeWriteError."""
        self._loaders = loaders
        self._cache = cache
        self._images = images
        self._stores = {path: BrickStore(path / BRICKS, cache) for path in directories}
        self._verified: set[bytes] = set()
        self._in_use: Counter[Path] = Counter()
        """Bricks that a layer is being made over, by no VM's record as yet."""

    async def make(self, wanted: RootWanted, timeline: Timeline) -> Layer:
        """Write ``kernel``, ``initrd`` and the layer ``wanted.path``; its directory is there.

        Raises ImageTreeError, DiskFullError, and what the cache and the volumes raise.
        """
        boot, loader = None, None
        if wanted.options is None:
            boot = self._boot_files(wanted.image)
        else:
            wanted = self._with_grub_config(wanted, wanted.options)
            loader = await self._loader(wanted, timeline)
        with full_disk(wanted.path), self._using(wanted, loader):
            brick = await self._unpack(wanted, boot, loader, timeline)
            with timeline.phase("layer"):
                info = await asyncio.to_thread(_layer, brick, wanted)
        return Layer(
            format="raw" if info.format == "raw" else "qcow2",
            backing=str(info.backing or ""),
            loader=loader.name if loader is not None else "",
            init=_init_of(wanted.image.tree),
        )

    async def make_plain(
        self, brick: Brick | None, path: Path, size: int, timeline: Timeline
    ) -> Layer:
        """Write the layer ``path`` of ``size`` bytes over a brick as it is, or an empty disk.

        Raises DiskFullError, DiskError, LayerError.
        """
        with full_disk(path), timeline.phase("layer"):
            info = await asyncio.to_thread(_plain_layer, brick, path, size)
        return Layer(
            format="raw" if info is None or info.format == "raw" else "qcow2",
            backing=str(info.backing or "") if info is not None else "",
        )

    async def restore(self, wanted: RootWanted, loader: str) -> Brick:
        """The brick again, with the boot loader of that name, if any, as far as it is kept."""
        kept = await asyncio.to_thread(self._loaders.load, loader) if loader else None
        return await self._unpack(wanted, None, kept, Timeline())

    async def _loader(self, wanted: RootWanted, timeline: Timeline) -> BootLoader:
        scheme = scheme_of(wanted.size, wanted.firmware)
        found = self._loaders.known(scheme)
        if found is None:
            with timeline.phase("make boot loader"):
                found = await asyncio.to_thread(self._loaders.get, scheme)
        return found

    def _with_grub_config(self, wanted: RootWanted, options: Callable[[bool], str]) -> RootWanted:
        """With a grub.cfg among the files, unless the image or the VM's overlay has one."""
        names = {posixpath.normpath("/" + name.lstrip("/")) for name in wanted.files}
        tree = wanted.image.tree
        if GRUB_CONFIG in names or tree.lookup(GRUB_CONFIG.encode()) is not None:
            return wanted
        boot = self._boot_files(wanted.image)
        initrd = None if boot.initrd is None else _boot_path(tree, boot.initrd)
        config = grub_config(_boot_path(tree, boot.kernel), initrd, options(initrd is not None))
        return replace(wanted, files={**wanted.files, GRUB_CONFIG: config})

    async def _unpack(
        self,
        wanted: RootWanted,
        boot: BootFiles | None,
        loader: BootLoader | None,
        timeline: Timeline,
    ) -> Brick:
        """The brick; with ``boot``, the boot files are linked beside ``wanted.path`` too."""
        try:
            return await self._unpack_once(wanted, boot, loader, timeline)
        except CorruptObjectError as error:
            # It was right when it came: the disk has changed it, and perhaps others.
            _log.warning("%s", error)
            await self._drop_corrupt(wanted.image)
        return await self._unpack_once(wanted, boot, loader, timeline)

    async def _unpack_once(
        self,
        wanted: RootWanted,
        boot: BootFiles | None,
        loader: BootLoader | None,
        timeline: Timeline,
    ) -> Brick:
        image = wanted.image
        store = self._stores[wanted.path.parent.parent]
        brick = store.find(image.digest, wanted.size, wanted.firmware, loader)
        if brick is None:
            needed = await asyncio.to_thread(image.tree.objects)
        else:
            needed = self._objects_of(image, boot)
        async with self._cache.pin(needed):
            if not await asyncio.to_thread(self._cache.has_all, needed):
                with timeline.phase("fetch objects"):
                    await self._images.fetch(needed)
            if boot is not None:
                await self._link_all(wanted, boot)
            if brick is None:
                brick = await store.get(
                    image.tree,
                    image.digest,
                    wanted.size,
                    wanted.firmware,
                    loader=loader,
                    timeline=timeline,
                )
        return brick

    async def _drop_corrupt(self, image: KnownImage) -> None:
        """Check every cached object of an image, and drop those that are not what they were."""
        wrong = await asyncio.to_thread(self._find_corrupt, image)
        await self._cache.drop(wrong)
        self._verified.difference_update(wrong)

    def _find_corrupt(self, image: KnownImage) -> list[bytes]:
        wrong = []
        for hash_ in image.tree.objects():
            with suppress(ObjectNotStoredError):  # not there, or evicted meanwhile
                if _digest(self._cache.place(hash_)) != self._cache.blake3(hash_):
                    wrong.append(hash_)
        return wrong

    def unused_bricks(
        self, used: Iterable[str], *, imported: bool = True
    ) -> dict[Path, list[Brick]]:
        """Bricks over which none of the layers with these backing files lies, oldest use first.

        Without ``imported`` only those that can be made again.
        """
        keep = set(used)
        return {
            directory: sorted(
                (
                    brick
                    for brick in store.list()
                    if str(brick.path.absolute()) not in keep and (imported or not brick.imported)
                ),
                key=lambda brick: brick.path.stat().st_atime_ns,
            )
            for directory, store in self._stores.items()
        }

    @property
    def stores(self) -> Mapping[Path, BrickStore]:
        """The bricks of each volume directory."""
        return self._stores

    async def durable(self, brick: Brick) -> None:
        """Wait until a brick is safe on disk. Raises VolumeWriteError."""
        await self._stores[brick.path.parent.parent].durable(brick)

    async def remove_brick(self, directory: Path, brick: Brick, used: Iterable[str]) -> None:
        """Delete a brick, unless it is needed by now; ``used`` as above, of this moment."""
        if brick.path in self._in_use or str(brick.path.absolute()) in used:
            return
        _log.info("removing the unused brick %s for its space", brick.path)
        await self._stores[directory].remove(brick)

    async def close(self) -> None:
        """Wait for what is being written."""
        for store in self._stores.values():
            await store.close()

    @contextmanager
    def _using(self, wanted: RootWanted, loader: BootLoader | None) -> Iterator[None]:
        """Its brick stays meanwhile."""
        key = brick_key(wanted.image.digest, wanted.size, wanted.firmware, loader)
        with self.holding(self._stores[wanted.path.parent.parent].directory / key):
            yield

    @contextmanager
    def holding(self, path: Path) -> Iterator[None]:
        """The brick at ``path`` stays meanwhile, whether it is there already or not."""
        self._in_use[path] += 1
        try:
            yield
        finally:
            self._in_use[path] -= 1
            self._in_use += Counter()  # without those at 0

    def _boot_files(self, image: KnownImage) -> BootFiles:
        try:
            return find_kernel(image.tree)
        except KernelError as error:
            raise ImageTreeError(name=image.name, detail=describe(error)) from error

    def _objects_of(self, image: KnownImage, boot: BootFiles | None) -> dict[bytes, int]:
        indexes = () if boot is None else (boot.kernel, boot.initrd)
        inodes = [image.tree.inode(index) for index in indexes if index is not None]
        return {bytes(inode.hash): inode.size for inode in inodes if inode.size}

    async def _link_all(self, wanted: RootWanted, boot: BootFiles) -> None:
        for index, name in ((boot.kernel, KERNEL), (boot.initrd, INITRD)):
            if index is None:
                continue
            inode = wanted.image.tree.inode(index)
            if not inode.size:
                raise ImageTreeError(name=wanted.image.name, detail=f"its {name} is empty")
            await self._link(bytes(inode.hash), wanted.path.with_name(name))

    async def _link(self, hash_: bytes, target: Path) -> None:
        source, digest = self._cache.place(hash_), self._cache.blake3(hash_)
        verify = hash_ not in self._verified
        try:
            right = await asyncio.to_thread(_link, source, target, digest if verify else None)
        except FileNotFoundError:  # the file is gone from under the cache
            right = False
        if not right:
            await self._cache.drop([hash_])
            raise CorruptObjectError(hash=hash_.hex(), path=target.name, detail="wrong BLAKE3")
        self._verified.add(hash_)


def _init_of(tree: FileSystem) -> str:
    """The init of a container VM; "" for any other image."""
    return "" if tree.lookup(INIT) is None else INIT.decode()


def _boot_path(tree: FileSystem, inode: int) -> bytes:
    """The path of an inode that is in /boot."""
    boot = tree.lookup(b"/boot")
    assert boot is not None
    return b"/boot/" + next(name for name, index in tree.children(boot) if index == inode)


def _layer(brick: Brick, wanted: RootWanted) -> LayerInfo:
    wanted.path.unlink(missing_ok=True)
    info = create_layer(
        brick,
        wanted.path,
        label=wanted.label,
        directories=wanted.directories,
        files=wanted.files,
        fstab=fstab_line(wanted.label),
        initial_image=wanted.image.name,
    )
    steps.inside()
    return info


def _plain_layer(brick: Brick | None, path: Path, size: int) -> LayerInfo | None:
    path.unlink(missing_ok=True)
    if brick is not None:
        info = create_plain_layer(brick, path, size)
    else:
        info = None
        with SparseFile(path) as file:
            file.extend(size)
    steps.inside()
    return info


def _link(source: Place, target: Path, digest: bytes | None) -> bool:
    """Hard-link or else copy; False when the content has not the BLAKE3 ``digest``."""
    if digest is not None and _digest(source) != digest:
        return False
    target.unlink(missing_ok=True)
    try:
        if source.packed:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        os.link(source.path, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
            raise
        with target.open("wb") as file:
            for data in source.read():
                file.write(data)
        target.chmod(0o444)
    return True


def _digest(source: Place) -> bytes:
    """BLAKE3 of an object, b"" when it cannot be read."""
    hasher = blake3()
    try:
        for data in source.read():
            hasher.update(data)
    except OSError:
        return b""
    return hasher.digest()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Say in plain words that a disk is full, whoever noticed; other OSErrors as DiskError."""
    try:
        yield
    except (OSError, SmallStackError) as error:
        if is_full(error):
            raise DiskFullError(path=path.parent) from error
        if isinstance(error, OSError):
            raise DiskError(path=path, detail=describe(error)) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error comes from a disk without space (or quota)."""
    full = {errno.ENOSPC, errno.EDQUOT}
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StoreSpaceError):
            return True
        if isinstance(seen, LayerFullError):
            return False  # the guest's file system is, not the disk
        number: object = getattr(seen, "errno", None) if isinstance(seen, OSError) else None
        if isinstance(seen, SmallStackError):
            number = seen.fields.get("errno")
        if number in full:
            return True
        seen = seen.__cause__
    return False


def forget_root(path: Path) -> None:
    """Remove what `Roots.make` made."""
    for name in (path.name, KERNEL, INITRD):
        with suppress(FileNotFoundError):
            path.with_name(name).unlink()
