"""Images on disk by name, as upstream's image server keeps them, and what is asked of them.

::

    <directory>/a/b/name         gob of the image, then the SHA-512 of that gob
    <directory>/a/b/name         empty: deleted; the name is never used again
    <directory>/a/b/name~        being written; removed at the next start
    <directory>/a/b/.metadata    the directory's owner group, gob and SHA-512; missing: none

Images are immutable but for the time at which they expire; expired ones go altogether. In memory
is what lists and searches need; a tree of inodes is read from its file when somebody asks for it,
and the last ones asked for are kept. Every method blocks and any thread may call it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from smallstack.durable import private_directory, sync_directory
from smallstack.images.changes import Follower
from smallstack.images.errors import CatalogueError, ImageNameError, RefusedError
from smallstack.images.image_file import read, truncate, write
from smallstack.images.names import ROOT, check_directory, check_name, parent
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.image import Directory, DirectoryMetadata, Image
from smallstack.proto.imageserver import ImageUpdate
from smallstack.proto.kinds import Time
from smallstack.telemetry.errors import SmallStackError, describe

METADATA: Final = ".metadata"
KEPT_BYTES: Final = 64 << 20
"""Bytes of trees kept in memory."""
_log = logging.getLogger("smallstack.images")


@dataclass(frozen=True)
class Entry:
    """What is kept of an image in memory; ``image`` is without its tree."""

    image: Image
    checksum: bytes
    inodes: int
    files: int
    data_bytes: int
    usage_estimate: int

    @property
    def expires(self) -> bool:
        """Whether it goes by itself some day."""
        return not self.image.expires_at.is_zero()


class ImageCatalogue:
    """The images below ``directory``, which is made if it is missing. `load` reads them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._directories: dict[str, DirectoryMetadata] = {}
        self._writing: set[str] = set()
        self._damaged: dict[str, str] = {}
        self._trees: OrderedDict[str, FileSystem] = OrderedDict()
        self._trees_bytes = 0
        self._followers: list[Follower] = []

    # Reading.

    def load(self, visit: Callable[[str, Image], None] | None = None) -> None:
        """Read every image; ``visit`` is called with each one, its tree included.

        An image that is damaged is reported in the log and left alone; one that has expired is
        removed. Raises CatalogueError when the directory itself cannot be used.
        """
        try:
            private_directory(self.directory)
            self._scan(ROOT, visit)
        except OSError as error:
            raise CatalogueError(directory=self.directory, detail=describe(error)) from error

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The names of all images, sorted."""
        with self._lock:
            return sorted(self._entries)

    def entries(self) -> list[Entry]:
        """What is known of every image."""
        with self._lock:
            return list(self._entries.values())

    def entry(self, name: str) -> Entry | None:
        """What is known of an image; None when there is none of that name."""
        return self._entries.get(name)

    def get(self, name: str) -> Image | None:
        """An image with its tree; None when there is none. Raises CatalogueError if damaged."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        with self._lock:
            tree = self._trees.get(name)
            if tree is not None:
                self._trees.move_to_end(name)
        if tree is None:
            try:
                image, _ = self._read(name)
            except FileNotFoundError:
                return None
            except (OSError, SmallStackError) as error:
                raise CatalogueError(
                    directory=self.directory, detail=f"{name}: {describe(error)}"
                ) from error
            tree = image.file_system
            if tree is None:
                return None
            self._keep(name, tree)
        return msgspec.structs.replace(entry.image, file_system=tree)

    def damaged(self) -> dict[str, str]:
        """Names whose files cannot be used, and why."""
        return dict(self._damaged)

    def directories(self) -> list[Directory]:
        """All directories, sorted; ``.`` is the top."""
        with self._lock:
            return [
                Directory(name=name, metadata=metadata)
                for name, metadata in sorted(self._directories.items())
            ]

    def metadata(self, directory: str) -> DirectoryMetadata | None:
        """What is known of a directory; None when there is none of that name."""
        return self._directories.get(directory)

    def find_latest(
        self,
        directory: str,
        build_commit_id: str = "",
        ignore_expiring: bool = False,
        tags: Mapping[str, Iterable[str]] | None = None,
    ) -> str:
        """The image right in ``directory`` that was created last; "" when there is none.

        ``build_commit_id`` is a commit or a branch; ``tags`` maps keys to the values allowed.
        Raises RefusedError when there is no such directory.
        """
        with self._lock:
            if directory not in self._directories:
                raise RefusedError(text=f"unknown directory: {directory}")
            found = [
                (entry.image.created_on.nanoseconds_since_epoch, name)
                for name, entry in self._entries.items()
                if parent(name) == directory
                and not (ignore_expiring and entry.expires)
                and build_commit_id in {"", entry.image.build_commit_id, entry.image.build_branch}
                and _has_tags(entry.image, tags)
            ]
        return max(found)[1] if found else ""

    def select(
        self,
        directory: str = "",
        ignore_expiring: bool = False,
        tags: Mapping[str, Iterable[str]] | None = None,
    ) -> list[str]:
        """Names of images in a subtree, sorted; ``dir/`` is that directory alone, "" is all."""
        with self._lock:
            return sorted(
                name
                for name, entry in self._entries.items()
                if _is_in(name, directory)
                and not (ignore_expiring and entry.expires)
                and _has_tags(entry.image, tags)
            )

    def expired(self, now: Time) -> list[str]:
        """Names of images whose time has come."""
        with self._lock:
            return [name for name, entry in self._entries.items() if _is_expired(entry.image, now)]

    def next_expiry(self) -> Time | None:
        """When the next image expires; None when none does."""
        with self._lock:
            times = [e.image.expires_at for e in self._entries.values() if e.expires]
        return min(times, key=lambda time: time.nanoseconds_since_epoch, default=None)

    # Following.

    def follow(self, wake: Callable[[], None], ignore_expiring: bool = False) -> Follower:
        """A follower that has been told nothing yet; `leave` ends it. See `Follower`."""
        follower = Follower(self, wake, ignore_expiring)
        with self._lock:
            for directory in self._directories:
                follower.note(directory, directory=True, gone=False)
            for name in self._entries:
                follower.note(name, directory=False, gone=False)
            self._followers.append(follower)
        return follower

    def changes(self, follower: Follower) -> list[ImageUpdate]:
        """What a follower has not been told yet: at first everything there is."""
        with self._lock:
            return follower.take()

    def leave(self, follower: Follower) -> None:
        """End a follower."""
        with self._lock:
            self._followers.remove(follower)

    def _note(self, name: str, *, directory: bool = False, gone: bool = False) -> None:
        """Tell all followers; the lock is held."""
        for follower in self._followers:
            follower.note(name, directory=directory, gone=gone)

    # Writing.

    def add(self, name: str, image: Image, *, again: bool = False) -> Entry:
        """Add an image, which has a tree; it is on disk when this returns.

        ``again``: also in the place of one that was deleted or is damaged.
        Raises RefusedError for a name that is or was in use, ImageNameError, CatalogueError.
        """
        check_name(name)
        tree = image.file_system
        if tree is None:
            raise RefusedError(text="nil file-system")
        with self._reserved(name):
            path = self.directory / name
            try:
                checksum = write(path, image, exclusive=not again)
            except FileExistsError:
                if name in self._damaged:
                    raise RefusedError(text=f"image: {name} exists but is damaged") from None
                text = f"cannot add previously deleted image: {name}"
                raise RefusedError(text=text) from None
            except OSError as error:
                raise CatalogueError(directory=self.directory, detail=describe(error)) from error
            entry = _entry(image, tree, checksum)
            with self._lock:
                self._entries[name] = entry
                self._damaged.pop(name, None)
                self._note(name)
            self._keep(name, tree)
        return entry

    def delete(self, name: str) -> None:
        """Delete an image for good: its name stays taken. Raises RefusedError, CatalogueError."""
        with self._lock:
            self._existing(name)
            try:
                truncate(self.directory / name)
            except OSError as error:
                raise CatalogueError(directory=self.directory, detail=describe(error)) from error
            self._forget(name)

    def expire(self, name: str) -> bool:
        """Remove an image if it has expired: its name is free again. Raises CatalogueError.

        Returns whether it was there and its time had come.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and _is_expired(entry.image, Time.now()):
                try:
                    (self.directory / name).unlink(missing_ok=True)
                except OSError as error:
                    detail = describe(error)
                    raise CatalogueError(directory=self.directory, detail=detail) from error
                self._forget(name)
                return True
        return False

    def change_expiration(self, name: str, expires_at: Time) -> bool:
        """Let an expiring image live longer, or for ever (zero time); whether that changed it.

        Raises RefusedError, CatalogueError.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise RefusedError(text="image not found")
        if not entry.expires:
            raise RefusedError(text="image does not expire: it is there until it is deleted")
        if not expires_at.is_zero():
            new, old = (t.nanoseconds_since_epoch for t in (expires_at, entry.image.expires_at))
            if new < old:
                raise RefusedError(text="cannot shorten expiration time")
            if new == old:
                return False
        with self._lock:
            if name in self._writing:
                raise RefusedError(text="image being modified")
            self._writing.add(name)
        try:
            image = self.get(name)
            if image is None or image.file_system is None:
                raise RefusedError(text="image not found")
            changed = msgspec.structs.replace(image, expires_at=expires_at)
            checksum = write(self.directory / name, changed, exclusive=False)
            with self._lock:
                self._entries[name] = _entry(changed, image.file_system, checksum)
                self._note(name)
        except OSError as error:
            raise CatalogueError(directory=self.directory, detail=describe(error)) from error
        finally:
            self._writing.discard(name)
        return True

    def make_directory(self, name: str, make_all: bool = False) -> list[str]:
        """Make a directory, owned as the one above it; ``make_all`` makes those above too.

        Returns the names made. Raises RefusedError, ImageNameError, CatalogueError.
        """
        name = check_directory(name)
        with self._lock:
            if make_all:
                if name == ROOT:
                    raise RefusedError(text="cannot create root directory")
            elif name in self._directories:
                raise RefusedError(text=f"directory: {name} already exists")
            missing: list[str] = []
            at = name
            while at not in self._directories:
                missing.append(at)
                at = parent(at)
                if not make_all:
                    break
            if at not in self._directories:
                raise RefusedError(text=f"no metadata for: {at}")
            for one in reversed(missing):
                if one in self._entries or one in self._writing:
                    raise RefusedError(text=f"image: {one} already exists")
                self._make(one, self._directories[parent(one)])
        return missing[::-1]

    def set_owner(self, directory: str, group: str) -> None:
        """Give a directory to a group; raises RefusedError, CatalogueError."""
        with self._lock:
            if directory not in self._directories:
                raise RefusedError(text=f'no metadata for: "{directory}"')
            metadata = DirectoryMetadata(owner_group=group)
            try:
                self._write_metadata(directory, metadata)
            except OSError as error:
                raise CatalogueError(directory=self.directory, detail=describe(error)) from error
            self._directories[directory] = metadata
            self._note(directory, directory=True)

    def delete_directory(self, name: str) -> None:
        """Remove an empty directory; one in which names were used and deleted stays.

        Raises RefusedError, CatalogueError.
        """
        with self._lock:
            if name not in self._directories or name == ROOT:
                raise RefusedError(text=f"directory: {name} does not exist")
            path = self.directory / name
            try:
                if [left.name for left in path.iterdir()] == [METADATA]:
                    (path / METADATA).unlink()
                path.rmdir()
            except OSError as error:
                raise RefusedError(text=f"remove {name}: {describe(error)}") from error
            del self._directories[name]
            self._note(name, directory=True, gone=True)

    # Within.

    def _scan(self, directory: str, visit: Callable[[str, Image], None] | None) -> None:
        path = self.directory / directory
        self._directories[directory] = self._read_metadata(directory)
        for found in sorted(path.iterdir()):
            name = found.name if directory == ROOT else f"{directory}/{found.name}"
            if found.name.startswith("."):
                if found.name == METADATA + "~":
                    found.unlink()
                continue
            if found.is_symlink():
                continue
            if found.is_dir():
                self._scan(name, visit)
            elif found.name.endswith("~"):
                found.unlink()
            elif found.is_file() and found.stat().st_size:
                self._load(name, visit)

    def _load(self, name: str, visit: Callable[[str, Image], None] | None) -> None:
        try:
            check_name(name)
            image, checksum = self._read(name)
            tree = image.file_system
            if tree is None:
                raise RefusedError(text="it has no file system")
        except (OSError, SmallStackError) as error:
            self._damaged[name] = describe(error)
            _log.error("image %s cannot be used: %s", name, describe(error))
            return
        if _is_expired(image, Time.now()):
            _log.info("removing the expired image %s", name)
            (self.directory / name).unlink()
            return
        self._entries[name] = _entry(image, tree, checksum)
        if visit is not None:
            visit(name, image)

    def _read(self, name: str) -> tuple[Image, bytes]:
        return read(self.directory / name, Image)

    def _read_metadata(self, directory: str) -> DirectoryMetadata:
        try:
            return read(self.directory / directory / METADATA, DirectoryMetadata)[0]
        except FileNotFoundError:
            return DirectoryMetadata()
        except SmallStackError as error:
            # Nobody but those with method powers may then add or delete here.
            _log.error("the owner of directory %s is lost: %s", directory, error)
            return DirectoryMetadata()

    def _make(self, name: str, above: DirectoryMetadata) -> None:
        try:
            with suppress(FileExistsError):
                (self.directory / name).mkdir()
            if not (self.directory / name).is_dir():
                raise RefusedError(text=f"cannot add previously deleted image: {name}")
            if above.owner_group:
                self._write_metadata(name, above)
            sync_directory((self.directory / name).parent)
        except OSError as error:
            raise CatalogueError(directory=self.directory, detail=describe(error)) from error
        self._directories[name] = above
        self._note(name, directory=True)

    def _write_metadata(self, directory: str, metadata: DirectoryMetadata) -> None:
        path = self.directory / directory / METADATA
        if metadata.owner_group:
            write(path, metadata, exclusive=False)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        """Keep a name for one writer; raises RefusedError when it is taken."""
        with self._lock:
            if name in self._entries:
                raise RefusedError(text=f"image: {name} already exists")
            if name in self._writing:
                raise RefusedError(text=f"image: {name} already being written")
            if name in self._directories:
                raise ImageNameError(name=name, what="an image", detail="it is a directory")
            if parent(name) not in self._directories:
                text = f"directory: {parent(name)} does not exist: make it first"
                raise RefusedError(text=text)
            self._writing.add(name)
        try:
            yield
        finally:
            self._writing.discard(name)

    def _existing(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            if name in self._writing:
                raise RefusedError(text=f"image: {name} is being written")
            raise RefusedError(text=f"image: {name} does not exist")
        return entry

    def _forget(self, name: str) -> None:
        del self._entries[name]
        self._note(name, gone=True)
        tree = self._trees.pop(name, None)
        if tree is not None:
            self._trees_bytes -= _size(tree)

    def _keep(self, name: str, tree: FileSystem) -> None:
        with self._lock:
            if name not in self._entries or name in self._trees or _size(tree) > KEPT_BYTES:
                return
            self._trees[name] = tree
            self._trees_bytes += _size(tree)
            while self._trees_bytes > KEPT_BYTES:
                self._trees_bytes -= _size(self._trees.popitem(last=False)[1])


def _entry(image: Image, tree: FileSystem, checksum: bytes) -> Entry:
    return Entry(
        image=msgspec.structs.replace(image, file_system=None),
        checksum=checksum,
        inodes=len(tree),
        files=tree.num_regular_inodes,
        data_bytes=tree.total_data_bytes,
        usage_estimate=tree.usage_estimate(),
    )


def _size(tree: FileSystem) -> int:
    return len(tree.inodes) + len(tree.entries) + len(tree.blob)


def _is_expired(image: Image, now: Time) -> bool:
    expires = image.expires_at
    return not expires.is_zero() and (
        expires.nanoseconds_since_epoch <= now.nanoseconds_since_epoch
    )


def _has_tags(image: Image, wanted: Mapping[str, Iterable[str]] | None) -> bool:
    return all(image.tags.get(key) in set(values) for key, values in (wanted or {}).items())


def _is_in(name: str, directory: str) -> bool:
    if directory in {"", ROOT}:
        return True
    if directory.endswith("/"):
        return parent(name) == directory[:-1]
    return name.startswith(directory + "/")
