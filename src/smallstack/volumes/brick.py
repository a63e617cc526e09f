"""Bricks: root disks written once for an image, a size and what boots them, and then only read.

States of a brick, by the files in the store's directory::

    (nothing) ──get──► KEY.~N being written ──rename──► KEY + KEY.pending ──fsync──► KEY
        ▲                    │ failure, or found at start        │
        └────────────────────┴───────────────────────────────────┘ found after a crash of the host

A create does not wait for the fsync: until it is done the mark ``KEY.pending`` stands beside the
brick and names the host's boot. An agent that starts and finds the mark of the same boot knows that
the kernel still has every byte, and syncs again; the mark of another boot means that the host
went down in between, and the brick is removed. It is made anew from the same inputs when it is next
asked for, bit for bit, so a layer over it stays valid.

A brick that was imported, a disk that others made, comes in by `adopt` in place of a build. Nothing
it could be made from again is kept: its name begins with IMPORTED, and whoever lets a VM stay waits
for `durable` before. What is known of where it came from is in ``KEY.note`` beside it.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from errno import EFBIG, ENOENT
from pathlib import Path
from typing import Final, Protocol

from blake3 import blake3

from smallstack.durable import boot_id, private_directory, replace_file, sync_directory
from smallstack.proto.enums import FirmwareType
from smallstack.proto.filesystem import FileSystem
from smallstack.telemetry.errors import describe
from smallstack.telemetry.timeline import Timeline
from smallstack.volumes import ext4
from smallstack.volumes.bootloader import BootLoader
from smallstack.volumes.errors import (
    CorruptObjectError,
    ObjectUnreadableError,
    RootSizeError,
    VolumeWriteError,
)
from smallstack.volumes.layout import MOST_BYTES, Layout, newest_mtime
from smallstack.volumes.partition import Division, divide, write_parts

WRITER_VERSION: Final = 1
"""Part of every brick's key: raised whenever the same inputs give other bytes."""

IMPORTED: Final = "imported-"
"""How the names of bricks begin that cannot be made again."""

TEMPORARY: Final = ".~"
PENDING: Final = ".pending"
NOTE: Final = ".note"
_log = logging.getLogger("smallstack.volumes")


class Objects(Protocol):
    """What a brick store needs of the object cache."""

    @property
    def directory(self) -> Path:
        """Holds the objects as <2 hex>/<126 hex>, <2 hex>/<2 hex>/<124 hex>, .packs/<number>."""

    def facts(self, hash_: bytes, /) -> tuple[bytes, int, int]:
        """What the bytes of an object must come to, by its SHA-512: a BLAKE3 (32 bytes) or a quick
        sum (16, see csrc/quick_sum.h); the number of its pack, 0 for none, and where it begins."""

    async def drop(self, hashes: Iterable[bytes], /) -> None:
        """Forget objects, so that they are fetched again."""


@dataclass(frozen=True, slots=True)
class Brick:
    """A finished root disk of ``size`` bytes, its root where `root_of` says. Never written to."""

    path: Path
    size: int
    key: str

    @property
    def imported(self) -> bool:
        """Whether it was made elsewhere, so that it cannot be made again."""
        return is_imported(self.path)

    def disk_usage(self) -> int:
        """Bytes that it takes on disk, in whole blocks; 0 when it is gone. Blocks."""
        try:
            return self.path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a brick is made from."""

    key: str
    fs: FileSystem
    size: int
    firmware: FirmwareType
    loader: BootLoader | None


def brick_key(
    image_digest: bytes, size: int, firmware: FirmwareType, loader: BootLoader | None = None
) -> str:
    """The name of the brick of these inputs, 40 hex digits.

    ``image_digest`` stands for the tree: equal digests mean equal trees.
    """
    bios = FirmwareType.BIOS if firmware == FirmwareType.DEFAULT else firmware
    hasher = blake3(b"smallstack brick")
    hasher.update(len(image_digest).to_bytes(2, "little") + image_digest)
    hasher.update(b"".join(n.to_bytes(8, "little") for n in (size, int(bios), WRITER_VERSION)))
    if loader is not None:
        hasher.update(loader.name.encode())
    return hasher.hexdigest(length=20)


def is_imported(path: Path) -> bool:
    """Whether a brick's file is of a disk that others made, so that it cannot be made again."""
    return path.name.startswith(IMPORTED)


def imported_key(digest: str, form: str, image_format: str) -> str:
    """The name of the brick of an image by the BLAKE3 of its bytes (hex), how they are compressed,
    and how the image holds its disk.
    """
    hasher = blake3(b"smallstack imported brick")
    hasher.update(f"{digest} {form} {image_format}".encode())
    return IMPORTED + hasher.hexdigest(length=20)


class BrickStore:
    """The bricks of one directory, which no other process uses.

    Opening it removes what a killed agent left half-made. Raises VolumeWriteError.
    """

    def __init__(self, directory: Path, cache: Objects, boot: str | None = None) -> None:
        """``boot`` names the host's boot, when it is not this one."""
        self.directory = directory
        self.cache = cache
        self._boot_id = boot_id() if boot is None else boot
        self._building: dict[str, asyncio.Task[Brick]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._unsynced: set[str] = set()
        self._syncing: dict[str, asyncio.Task[None]] = {}
        self.layouts: dict[str, Layout] = {}
        try:
            private_directory(directory)
            self._clean()
        except OSError as error:
            raise _write_error(directory, error) from error

    def _clean(self) -> None:
        """Remove temporary files, and bricks that a crash of the host may have torn."""
        for path in list(self.directory.iterdir()):
            if TEMPORARY in path.name or path.name.endswith("~"):
                path.unlink()
            elif path.name.endswith(NOTE):
                if not path.with_name(path.name.removesuffix(NOTE)).exists():
                    path.unlink()
            elif path.name.endswith(PENDING):
                brick = path.with_name(path.name.removesuffix(PENDING))
                if path.read_text() == self._boot_id and brick.exists():
                    self._unsynced.add(brick.name)
                    continue
                _log.warning("removing brick %s: the host went down before it was safe", brick)
                brick.unlink(missing_ok=True)
                path.unlink()

    def find(
        self,
        image_digest: bytes,
        size: int,
        firmware: FirmwareType,
        loader: BootLoader | None = None,
    ) -> Brick | None:
        """The finished brick of these inputs, or None."""
        key = brick_key(image_digest, size, firmware, loader)
        path = self.directory / key
        return Brick(path, size, key) if path.exists() else None

    def list(self) -> list[Brick]:
        """All finished bricks, by key."""
        names = sorted(p.name for p in self.directory.iterdir() if "." not in p.name)
        paths = [self.directory / name for name in names]
        return [Brick(path, path.stat().st_size, path.name) for path in paths]

    async def remove(self, brick: Brick) -> None:
        """Delete a brick; only when no layer lies over it. Nobody finds it from the call on."""
        going = brick.path.with_name(f"{brick.key}{TEMPORARY}{os.getpid()}.going")
        with suppress(FileNotFoundError):
            brick.path.replace(going)
        self._marker(brick.key).unlink(missing_ok=True)
        self._note(brick.key).unlink(missing_ok=True)
        await asyncio.to_thread(going.unlink, missing_ok=True)

    async def get(
        self,
        fs: FileSystem,
        image_digest: bytes,
        size: int,
        firmware: FirmwareType,
        progress: Callable[[str], None] | None = None,
        *,
        loader: BootLoader | None = None,
        timeline: Timeline | None = None,
    ) -> Brick:
        """The brick of an image at ``size`` bytes (the whole disk), made if there is none yet.

        Concurrent callers of one key share one build, which goes on when a caller is cancelled.
        ``progress`` is told in words when something has to be waited for; ``timeline`` gets the
        phases ``unpack`` and ``install boot loader``. The objects must be in the cache and pinned.
        ``loader`` has to be of the disk's scheme. Raises CorruptObjectError after having dropped
        the object from the cache (fetch it again and call again), RootTooSmallError,
        TooManyInodesError, RootSizeError, TreeInvalidError, XattrsTooLargeError,
        ObjectUnreadableError, BootLoaderError, VolumeWriteError.
        """
        while self._unsynced:
            self._start(self._sync(self._unsynced.pop()))
        brick = self.find(image_digest, size, firmware, loader)
        if brick is not None:
            return brick
        key = brick_key(image_digest, size, firmware, loader)
        timeline = timeline or Timeline()
        task = self._building.get(key)
        if progress is not None:
            progress("writing root volume" if task is None else "waiting for root volume")
        if task is None:
            wanted = _Wanted(key, fs, size, firmware, loader)
            task = asyncio.create_task(self._build(wanted, timeline))
            self._building[key] = task
            task.add_done_callback(lambda done: self._built(key, done))
            return await asyncio.shield(task)
        with timeline.phase("unpack"):
            return await asyncio.shield(task)

    def temporary(self) -> Path:
        """A name for a file that is to be adopted; a start removes it if a kill left it."""
        return self.directory / f"{os.urandom(8).hex()}{TEMPORARY}{os.getpid()}"

    def imported(self, key: str) -> Brick | None:
        """The imported brick of this name, or None."""
        path = self.directory / key
        try:
            return Brick(path, path.stat().st_size, key)
        except FileNotFoundError:
            return None

    async def adopt(self, temporary: Path, key: str) -> Brick:
        """Make a finished file a brick, unless there is one of this key already; see `durable`.

        The file is gone in either case. Raises VolumeWriteError.
        """
        brick = await asyncio.to_thread(self._adopt, temporary, key)
        if self._marker(key).exists():
            self._sync_of(key)
        return brick

    def _adopt(self, temporary: Path, key: str) -> Brick:
        path = self.directory / key
        try:
            if path.exists():
                temporary.unlink()
            else:
                temporary.chmod(0o400)
                self._marker(key).write_text(self._boot_id)
                temporary.rename(path)
            return Brick(path, path.stat().st_size, key)
        except OSError as error:
            raise _write_error(path, error) from error

    async def durable(self, brick: Brick) -> None:
        """Wait until a brick is safe on disk. Raises VolumeWriteError; the brick is then gone:

        the kernel reports lost writes once, and would not the next time.
        """
        under_way = brick.key in self._syncing  # its mark may be gone already, not yet durably
        if not under_way and not await asyncio.to_thread(self._marker(brick.key).exists):
            return
        self._unsynced.discard(brick.key)
        try:
            await asyncio.shield(self._sync_of(brick.key))
        except OSError as error:
            await self.remove(brick)
            raise _write_error(brick.path, error) from error

    def _sync_of(self, key: str) -> asyncio.Task[None]:
        """The one sync of a brick that is under way."""
        task = self._syncing.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._sync_now, key))
            self._syncing[key] = task
            task.add_done_callback(lambda done: self._synced_now(key, done))
        return task

    def _synced_now(self, key: str, task: asyncio.Task[None]) -> None:
        del self._syncing[key]
        if not task.cancelled():
            task.exception()  # seen: whoever needs the brick asks again

    def write_note(self, brick: Brick, note: bytes) -> None:
        """Keep what is known of where a brick came from. Blocks. Raises OSError."""
        replace_file(self._note(brick.key), note, 0o600, sync=False)

    def notes(self) -> dict[str, bytes]:
        """All notes by key. Blocks. Raises OSError."""
        paths = [path for path in self.directory.iterdir() if path.name.endswith(NOTE)]
        return {path.name.removesuffix(NOTE): path.read_bytes() for path in paths}

    async def close(self) -> None:
        """Wait for builds and syncs that are under way."""
        under_way = [*self._building.values(), *self._background, *self._syncing.values()]
        await asyncio.gather(*under_way, return_exceptions=True)

    async def synced(self) -> None:
        """Wait until every finished brick is safe on disk."""
        await asyncio.gather(*self._background)

    def _built(self, key: str, task: asyncio.Task[Brick]) -> None:
        del self._building[key]
        if not task.cancelled():
            task.exception()  # seen: a caller that went away must not make it a warning

    async def _build(self, wanted: _Wanted, timeline: Timeline) -> Brick:
        try:
            brick = await asyncio.to_thread(self._write, wanted, timeline)
        except CorruptObjectError as error:
            await self.cache.drop([bytes.fromhex(error.hash)])
            raise
        self._start(self._sync(wanted.key))
        return brick

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _marker(self, key: str) -> Path:
        return self.directory / (key + PENDING)

    def _note(self, key: str) -> Path:
        return self.directory / (key + NOTE)

    def _write(self, wanted: _Wanted, timeline: Timeline) -> Brick:
        """Write a brick under a temporary name, then give it its own. Runs in a thread."""
        path = self.directory / wanted.key
        temporary = path.with_name(f"{wanted.key}{TEMPORARY}{os.getpid()}")
        try:
            self.layouts[wanted.key] = write_disk(
                temporary,
                wanted.fs,
                self.cache,
                wanted.size,
                bytes.fromhex(wanted.key),
                wanted.firmware,
                wanted.loader,
                timeline,
            )
            self._marker(wanted.key).write_text(self._boot_id)
            temporary.rename(path)
        except OSError as error:
            raise _write_error(path, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return Brick(path, wanted.size, wanted.key)

    async def _sync(self, key: str) -> None:
        """Make a brick durable, then take its mark away."""
        try:
            await asyncio.to_thread(self._sync_now, key)
        except OSError as error:
            # The mark stays: the brick serves until the host goes down, and is made again then.
            _log.error("cannot sync brick %s: %s", key, describe(error))

    def _sync_now(self, key: str) -> None:
        fd = os.open(self.directory / key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self.directory)
        self._marker(key).unlink(missing_ok=True)
        # A mark that comes back after a power cut would have the brick removed, and one that was
        # imported cannot be made again.
        sync_directory(self.directory)


def write_disk(
    path: Path,
    fs: FileSystem,
    cache: Objects,
    size: int,
    seed: bytes,
    firmware: FirmwareType = FirmwareType.BIOS,
    loader: BootLoader | None = None,
    timeline: Timeline | None = None,
) -> Layout:
    """Write a whole root disk of ``size`` bytes to a new file, without syncing it.

    ``seed``, 16 bytes or more, gives the disk's signature and the file system's UUID;
    ``timeline`` gets the phases. Raises what :meth:`BrickStore.get` raises, and OSError.
    """
    timeline = timeline or Timeline()
    division = divide(size, firmware, seed)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        with timeline.phase("unpack"):
            layout = _write_root(fd, path, fs, cache, size, division, seed)
        if loader is not None:
            with timeline.phase("install boot loader"):
                loader.install(fd, division, seed)
    finally:
        os.close(fd)
    return layout


def _write_root(
    fd: int,
    path: Path,
    fs: FileSystem,
    cache: Objects,
    size: int,
    division: Division,
    seed: bytes,
) -> Layout:
    directory = os.open(cache.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            if error.errno == EFBIG:  # more than a file of this host can have
                detail = (
                    f"the file system of {path.parent} holds no file as large;"
                    f" ext4 has {MOST_BYTES} at most"
                )
                raise RootSizeError(size=size, detail=detail) from error
            raise
        write_parts(fd, division.writes)
        return ext4.write_root(
            fd,
            fs,
            directory,
            facts=cache.facts,
            size=division.root.size,
            offset=division.root.offset,
            uuid=random_looking_uuid(seed),
            time=newest_mtime(fs),
            path=os.fspath(path),
        )
    except ObjectUnreadableError as error:
        if error.errno == ENOENT:
            raise CorruptObjectError(
                hash=error.hash, path=error.path, detail="its file is gone"
            ) from error
        raise
    finally:
        os.close(directory)


def random_looking_uuid(seed: bytes) -> bytes:
    """The first 16 bytes of ``seed`` marked as a version 4 UUID (RFC 9562)."""
    uuid = bytearray(seed[:16])
    uuid[6] = uuid[6] & 0x0F | 0x40
    uuid[8] = uuid[8] & 0x3F | 0x80
    return bytes(uuid)


def _write_error(path: Path, error: OSError) -> VolumeWriteError:
    return VolumeWriteError(path=path, detail=error.strerror or str(error), errno=error.errno)
