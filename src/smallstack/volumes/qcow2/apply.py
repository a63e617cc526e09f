"""Applies a diff stream to a disk: each block checked before it is written.

A qcow2 disk becomes the new one in one step at the end (csrc/qcow2_edit.h), and stays the old one
until then: what was cut off begins again. A raw disk is changed in place. Beside it, in
``<disk>.applying``, lies how far that is, so that an apply that was cut off, by a kill, a power cut
or the stream's end, goes on where it was when it is called again with the same stream, or with the
rest of it; then the file goes. While it is there the disk is neither the old nor the new one, and
no other stream is taken.

Before anything is written: the disk has the old one's size, the room for every block is there, and
if the stream tells the old blocks' digests and can be read twice, every old block is what it
should be. A stream from a pipe is checked frame by frame.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from smallstack.durable import replace_file, sync_directory
from smallstack.volumes.qcow2 import write
from smallstack.volumes.qcow2.chain import Files
from smallstack.volumes.qcow2.codec import Plan
from smallstack.volumes.qcow2.commit import writable_view, write_at
from smallstack.volumes.qcow2.errors import DiskUnwritableError, StreamError, WrongBaseError
from smallstack.volumes.qcow2.place import writable
from smallstack.volumes.qcow2.stream import Frame, StreamReader
from smallstack.volumes.qcow2.write import Editor

SYNC_BYTES: Final = 64 << 20
"""How much is written between two notes of how far it is."""


@dataclass(frozen=True)
class Applied:
    """What an apply did: blocks and bytes written, and the block it went on from."""

    blocks: int
    bytes: int
    resumed_from: int


@dataclass
class _State:
    """How far it is: blocks before ``done`` are new; up to ``until`` they can be anything."""

    identity: str
    chain: str
    done: int
    until: int


@dataclass(frozen=True)
class Progress:
    """What a note beside a disk says: whoever sends the rest of the stream needs all of it."""

    identity: bytes
    next_block: int
    chain: bytes


def progress(path: Path) -> Progress | None:
    """How far an apply to the disk at ``path`` was when it was cut off; None: there was none."""
    state = _read_note(path)
    if state is None:
        return None
    return Progress(bytes.fromhex(state.identity), state.done, bytes.fromhex(state.chain))


def apply_raw(stream: StreamReader, path: Path, first_look: StreamReader | None = None) -> Applied:
    """Turn the raw disk at ``path`` into the new one.

    ``first_look`` reads the same stream from a file that can seek: with it all old blocks are
    checked before one is written. Raises WrongBaseError, StreamError and its kinds,
    DiskUnwritableError.
    """
    with writable(path) as fd:
        return _Apply(stream, path, fd).run(first_look)


def apply_qcow2(
    stream: StreamReader, path: Path, first_look: StreamReader | None = None
) -> Applied:
    """Turn the qcow2 disk at ``path`` into the new one, over what is below it.

    ``first_look`` as for `apply_raw`. Raises the same, and the classes of ``errors`` for an image
    that cannot be edited.
    """
    plan = stream.plan
    with Files() as files:
        disk = files.open(path, disk_format="qcow2")
        if disk.size != plan.old_size:
            detail = f"it has {disk.size} bytes, not {plan.old_size}"
            raise WrongBaseError(target=path, detail=detail)
        if plan.first_block:
            detail = "a qcow2 disk takes it only from its first block on"
            raise StreamError(path=stream.name, detail=detail)
        if first_look is not None and plan.old_digests:
            for frame in first_look.frames(bodies=False):
                _check_old(plan, frame, disk.view.read, path)
        blocks = written = 0
        with (
            writable_view(path, disk.layers[1:]) as view,
            Editor(view, plan, plan.new_size) as edit,
        ):
            for frame in stream.frames():
                data = stream.data(frame)
                if first_look is None and plan.old_digests:
                    _check_old(plan, frame, disk.view.read, path)
                for offset, piece in _joined(frame.places, data):
                    edit.write(offset, piece)
                blocks += len(frame.places)
                written += len(data)
            edit.finish()
        return Applied(blocks, written, 0)


def _check_old(plan: Plan, frame: Frame, read: Callable[[int, int], bytes], target: Path) -> None:
    """Every block is the old one, or the new one already; beyond the end there are zeros."""
    data = b"".join(read(offset, length) for offset, length in frame.places)
    have = plan.digests(frame.first, data)
    new, old = frame.new_digests(), frame.old_digests()
    for number, (offset, _) in enumerate(frame.places):
        if have[number * 32 : number * 32 + 32] not in (old[number], new[number]):
            detail = f"its block at byte {offset} has another content"
            raise WrongBaseError(target=target, detail=detail)


class _Apply:
    def __init__(self, stream: StreamReader, path: Path, fd: int) -> None:
        self.stream, self.plan, self.path, self.fd = stream, stream.plan, path, fd
        self.is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def run(self, first_look: StreamReader | None) -> Applied:
        """The whole apply."""
        state = _read_note(self.path)
        fresh = state is None
        if state is None:
            self._check_size()
            state = _State(self.plan.identity.hex(), self.plan.first_chain.hex(), 0, 0)
        elif state.identity != self.plan.identity.hex():
            detail = f"another stream is half applied to it: {_note_path(self.path)} tells of it"
            raise WrongBaseError(target=self.path, detail=detail)
        if self.plan.first_block > state.done:
            detail = f"it begins at block {self.plan.first_block}, needed is {state.done}"
            raise StreamError(path=self.stream.name, detail=detail)
        check = self.plan.old_digests
        if first_look is not None and check:
            for frame in first_look.frames(bodies=False):
                if frame.first >= state.until:
                    self._check_old(frame)
            check = False
        try:
            if fresh and self.is_file:
                write.reserve_plan(self.fd, self.plan)
            self._write_note(state)
            self._begin()
            return self._blocks(state, check)
        except OSError as error:
            raise DiskUnwritableError.wrap(error, path=self.path) from None

    def _check_size(self) -> None:
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if not self.is_file and size >= max(self.plan.old_size, self.plan.new_size):
            return
        if size != self.plan.old_size:
            detail = f"it has {size} bytes, not {self.plan.old_size}"
            raise WrongBaseError(target=self.path, detail=detail)

    def _check_old(self, frame: Frame) -> None:
        _check_old(self.plan, frame, self._read, self.path)

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset).ljust(length, b"\0")

    def _begin(self) -> None:
        """What needs no data: growing and zeros. Doing it twice does no harm."""
        if self.is_file and os.fstat(self.fd).st_size < self.plan.new_size:
            os.ftruncate(self.fd, self.plan.new_size)
        for offset, length, zero in self.plan.extents():
            if zero:
                write.zero(self.fd, offset, length)

    def _blocks(self, state: _State, check: bool) -> Applied:
        window = max(1, SYNC_BYTES // (self.plan.frame_blocks << 16)) * self.plan.frame_blocks
        resumed, doubtful, noted = state.done, state.until, state.done
        blocks = written = 0
        for frame in self.stream.frames():
            if frame.first + len(frame.places) <= resumed:
                continue
            data = self.stream.data(frame)
            if check and frame.first >= doubtful:
                self._check_old(frame)
            if frame.first >= noted:
                os.fdatasync(self.fd)
                noted = min(frame.first + window, self.plan.blocks)
                state.done, state.chain = frame.first, self.stream.chain.hex()
                state.until = max(noted, doubtful)
                self._write_note(state)
            for offset, piece in _joined(frame.places, data):
                write_at(self.fd, piece, offset)
            blocks += len(frame.places)
            written += len(data)
        if self.is_file:
            os.ftruncate(self.fd, self.plan.new_size)
        os.fsync(self.fd)
        _note_path(self.path).unlink(missing_ok=True)
        sync_directory(self.path.parent)
        return Applied(blocks, written, resumed)

    def _write_note(self, state: _State) -> None:
        note = _note_path(self.path)
        replace_file(note, json.dumps(asdict(state)).encode())


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.applying")


def _read_note(path: Path) -> _State | None:
    note = _note_path(path)
    try:
        values = json.loads(note.read_bytes())
        return _State(
            str(values["identity"]), str(values["chain"]), int(values["done"]), int(values["until"])
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise WrongBaseError(target=path, detail=f"{note} is damaged") from None


def _joined(places: list[tuple[int, int]], data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Blocks that follow each other on the disk, as one piece."""
    view, at, start, run = memoryview(data), 0, 0, 0
    for offset, length in places:
        if run and offset == start + run:
            run += length
            continue
        if run:
            yield start, view[at : at + run]
        at, start, run = at + run, offset, length
    if run:
        yield start, view[at : at + run]
