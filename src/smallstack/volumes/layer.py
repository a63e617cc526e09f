"""Layers: one VM's own disk over a brick, holding nothing but what differs.

Label, UUID, fstab line and overlay files are edited into a few blocks in memory; these blocks are
all that is written. Where the host's file system shares blocks between files the layer is a
reflinked raw file, else a qcow2 overlay whose backing file is the brick, or on request a full
copy. The brick is never written to.
"""

import errno
import fcntl
import os
import posixpath
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from smallstack.telemetry.errors import describe
from smallstack.volumes.brick import Brick, random_looking_uuid
from smallstack.volumes.edit import Edit, write_empty_qcow2
from smallstack.volumes.errors import LayerError, LayerFullError, LayerPathError
from smallstack.volumes.partition import root_of

FSTAB: Final = "/etc/fstab"
INITIAL_IMAGE: Final = "/var/lib/initial-image"

_FICLONE: Final = 0x40049409
_NO_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
)
_MAX_FSTAB: Final = 1 << 20
_COPY_AT_ONCE: Final = 1 << 30
_PATH_ERRORS: Final = {
    errno.ENOTDIR: "something above it is not a directory",
    errno.EISDIR: "it is not a regular file",
    errno.ELOOP: "too many symlinks lead there",
    errno.ENAMETOOLONG: "the path or one of its names is too long",
    errno.EFBIG: "the file that is there is too large",
}


class Way(Enum):
    """How a layer holds what it shares with its brick."""

    AUTO = "auto"
    REFLINK = "reflink"
    QCOW2 = "qcow2"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A finished layer: ``format`` is raw or qcow2, ``backing`` the brick's file for qcow2.

    ``virtual_size`` is what the guest sees, ``written`` what was written for it, both in bytes.
    """

    path: Path
    format: str
    backing: Path | None
    virtual_size: int
    uuid: bytes
    written: int


def root_label(address: bytes) -> str:
    """The label of the root file system of the VM with this IPv4 address (4 bytes)."""
    return f"rootfs@{address[:4].hex()}"


def fstab_line(label: str) -> bytes:
    """The line that mounts the root by its label."""
    return f"{'LABEL=' + label:<22} {'/':<10} {'ext4':<5} {'defaults':<10} 0 1\n".encode()


def fstab_with_root(label: str, old: bytes) -> bytes:
    """An fstab with the root's line before what it had."""
    return fstab_line(label) + old


def create_layer(
    brick: Brick,
    path: Path,
    *,
    label: str,
    uuid: bytes | None = None,
    directories: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    fstab: bytes = b"",
    initial_image: str = "",
    way: Way = Way.AUTO,
    mode: int = 0o600,
) -> LayerInfo:
    """Make the layer ``path`` (must not exist) over ``brick``. Takes milliseconds; may block.

    ``uuid``: 16 bytes, else random. ``directories`` are made 0755 root:root, ``files`` 0644
    root:root, in place of what the image has there, with the directories above them; paths are
    cleaned, and symlinks in them are followed inside the root. ``fstab`` is put before what
    /etc/fstab has after that (see fstab_line). ``initial_image``, with a line feed, becomes the
    content of /var/lib/initial-image. Nothing is synced. Raises LayerFullError, LayerPathError,
    LayerError; then no file is left.
    """
    uuid = uuid or random_looking_uuid(os.urandom(16))
    content = {_clean(name): bytes(data) for name, data in (files or {}).items()}
    if initial_image:
        content[INITIAL_IMAGE.encode()] = initial_image.encode() + b"\n"
    source = _open(brick)
    try:
        edit = _edit(brick, source)
        with _errors(brick):
            edit.identity(label.encode(), uuid)
            for name in directories:
                edit.mkdir(_clean(name))
            old = content.pop(FSTAB.encode(), None)
            for cleaned, data in content.items():
                edit.write(cleaned, data)
            if fstab or old is not None:
                edit.write(FSTAB.encode(), fstab + (_fstab_of(edit) if old is None else old))
        return _write(brick, source, edit, path, uuid, way, mode, brick.size)
    finally:
        os.close(source)


def create_plain_layer(
    brick: Brick, path: Path, size: int, *, way: Way = Way.AUTO, mode: int = 0o600
) -> LayerInfo:
    """Make the layer ``path`` (must not exist) over ``brick`` without any change to its content.

    ``size``: bytes of the disk, the brick's or more; what is beyond the brick reads as zeros.
    Nothing is synced. Raises LayerError; then no file is left.
    """
    source = _open(brick)
    try:
        return _write(brick, source, None, path, bytes(16), way, mode, size)
    finally:
        os.close(source)


def _open(brick: Brick) -> int:
    try:
        return os.open(brick.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LayerError(brick=brick.path, detail=describe(error), errno=error.errno) from error


def _edit(brick: Brick, source: int) -> Edit:
    with _errors(brick):
        root = root_of(source, brick.size)
        return Edit(source, root.offset, root.size, int(time.time()))


def _clean(path: str) -> bytes:
    """An absolute path without dots and doubled slashes, never above the root."""
    if "\0" in path:
        raise LayerPathError(path=path, detail="a path cannot hold a NUL byte")
    return os.fsencode(posixpath.normpath("/" + path.lstrip("/")))


def _fstab_of(edit: Edit) -> bytes:
    try:
        return edit.read(FSTAB.encode(), _MAX_FSTAB)
    except FileNotFoundError:
        return b""


@contextmanager
def _errors(brick: Brick) -> Iterator[None]:
    """Turn what the editor raises into what the caller is told."""
    try:
        yield
    except OSError as error:
        path = error.filename.decode(errors="backslashreplace") if error.filename else ""
        fields = {"brick": brick.path, "path": path, "errno": error.errno}
        if error.errno in (errno.ENOSPC, errno.E2BIG):
            raise LayerFullError(detail=error.strerror, **fields) from error
        if error.errno in _PATH_ERRORS and path:
            raise LayerPathError(detail=_PATH_ERRORS[error.errno], **fields) from error
        detail = {
            errno.EUCLEAN: "its file system is damaged: remove it, it will be made again",
            errno.EOPNOTSUPP: "its file system is not one of ours",
        }.get(error.errno or 0, error.strerror)
        raise LayerError(detail=detail, **fields) from error


def _write(
    brick: Brick,
    source: int,
    edit: Edit | None,
    path: Path,
    uuid: bytes,
    way: Way,
    mode: int,
    size: int,
) -> LayerInfo:
    """Write the edit as ``path``, in the way asked for; AUTO: a reflink or else qcow2."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise LayerError(brick=brick.path, detail=describe(error), errno=error.errno) from error
    try:
        raw = _share(source, fd, way, brick.size)
        written = 0
        if raw and edit is not None:
            written = edit.apply(fd)
        elif raw:
            os.ftruncate(fd, size)
        else:
            backing = os.fsencode(brick.path.absolute())
            if edit is not None:
                written = edit.write_qcow2(fd, backing, size)
            else:
                write_empty_qcow2(fd, backing, size)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise LayerError(brick=brick.path, detail=describe(error), errno=error.errno) from error
        raise
    finally:
        os.close(fd)
    return LayerInfo(
        path=path,
        format="raw" if raw else "qcow2",
        backing=None if raw else brick.path.absolute(),
        virtual_size=size,
        uuid=uuid,
        written=written,
    )


def _share(source: int, fd: int, way: Way, size: int) -> bool:
    """Give the empty file ``fd`` the brick's content; False: it has to be a qcow2 overlay."""
    if way is Way.QCOW2:
        return False
    if way is Way.COPY:
        _copy(source, fd, size)
        return True
    if reflink(source, fd):
        return True
    if way is Way.REFLINK:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return False


def reflink(source: int, fd: int) -> bool:
    """Give the empty file ``fd`` the content of another, sharing its blocks; whether that can be.

    Raises OSError for what is wrong otherwise, such as a full disk.
    """
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


def _copy(source: int, fd: int, size: int) -> None:
    """Copy the data of a file, holes left out."""
    os.ftruncate(fd, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            count = min(end - start, _COPY_AT_ONCE)
            start += os.copy_file_range(source, fd, count, start, start)
