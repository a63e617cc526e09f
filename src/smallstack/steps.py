"""A list of steps with an undo each, and the journal that makes it survive a crash.

An operation that changes the world (create, restore, migrate) is a list of steps run in order.
When one fails, or the task is cancelled, those begun are undone in reverse. The journal is a file
of JSON lines beside what the operation makes: a step's name reaches the disk *before* the step
starts, so after a ``kill -9`` the next start finds every step that may have left something behind
and hands the same list to `undo_all`. An undo must therefore bear a step that was only half done,
or undone already.

::

    begin a ── do a ── done a, begin b ── do b ── … ── Journal.finish (the file is gone)
                │                          │
                └────── error, cancel ─────┴──► undo b, undone b, undo a, undone a ── finish

Nothing here knows what a step does.
"""

import asyncio
import contextvars
import json
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from smallstack.durable import sync_directory
from smallstack.outlast import outlast
from smallstack.telemetry.errors import SmallStackError

_log = logging.getLogger("smallstack.steps")

PointHook = Callable[[str, str], None]
"""Called with ``"before" | "inside" | "after"`` and the step's name; tests kill or raise in it."""


class Step(Protocol):
    """One step. ``undo`` bears a step that is half done or undone; see `Action` for a ready one."""

    @property
    def name(self) -> str:
        """Unique in its list; what the journal and the kill points call it."""

    async def do(self) -> None:
        """Do the work, calling `inside` once where a crash would leave the most behind."""

    async def undo(self) -> None:
        """Put everything back."""


class Together:
    """Steps that do not need each other: done at the same time, undone one after the other."""

    def __init__(self, *members: Step) -> None:
        self.members = members


Steps = Sequence[Step | Together]


class NoUndo:
    """Stands for the undo of a step that needs none, and says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    async def __call__(self) -> None:
        """Nothing to put back."""


@dataclass(frozen=True)
class Action:
    """A step made of two functions; ``undo`` may be ``NoUndo("why none is needed")``."""

    name: str
    work: Callable[[], Awaitable[None]]
    reverse: Callable[[], Awaitable[None]]

    async def do(self) -> None:
        """Do the work."""
        await self.work()

    async def undo(self) -> None:
        """Put everything back."""
        await self.reverse()


class MissingPointError(SmallStackError):
    """step {name!r} never called steps.inside(): a crash in its middle cannot be tried"""


class JournalError(SmallStackError):
    """cannot write the journal {path}: {detail}"""


class Journal:
    """What an operation has begun, as a file of JSON lines that is gone once it has finished.

    The first line is ``{"operation": …, "data": {…}}``: enough for a later start to rebuild the
    list of steps. Then ``{"begin": NAME}``, ``{"done": NAME}``, ``{"undone": NAME}`` and
    ``{"note": {…}}``. Only "begin" and notes are waited for: a "done" that a crash loses makes a
    finished step look half done, which an undo has to bear anyway.
    """

    def __init__(self, path: Path, operation: str, data: dict[str, Any]) -> None:
        self.path = path
        self.operation = operation
        self.data = data
        self.notes: dict[str, Any] = {}
        self._begun: list[str] = []
        self._pending: list[dict[str, Any]] = []
        self._fd = -1

    @classmethod
    def create(cls, path: Path, operation: str = "", data: dict[str, Any] | None = None) -> Self:
        """A new journal; nothing is written before the first step. ``data`` must suit JSON."""
        journal = cls(path, operation, data or {})
        journal._pending.append({"operation": operation, "data": journal.data})
        return journal

    @classmethod
    def load(cls, path: Path) -> Self:
        """The journal an earlier run left; a last line torn by the crash is left out.

        Raises OSError, FileNotFoundError among them.
        """
        journal = cls(path, "", {})
        lines = path.read_bytes().split(b"\n")
        end = 0
        for line in lines[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                break
            journal._replay(record)
            end += len(line) + 1
        journal._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(journal._fd, end)
        os.lseek(journal._fd, 0, os.SEEK_END)
        return journal

    @property
    def begun(self) -> list[str]:
        """Names of the steps that began and were not undone, in order."""
        return list(self._begun)

    async def begin(self, *names: str) -> None:
        """On disk when it returns: the steps are about to start. Raises JournalError."""
        await self._durable(*({"begin": name} for name in names))
        self._begun += names

    async def note(self, **facts: Any) -> None:
        """On disk when it returns: facts that an undo needs, such as a chosen address."""
        await self._durable({"note": facts})
        self.notes |= facts

    def remember(self, **facts: Any) -> None:
        """As `note`, but written with the next line that is waited for: for facts that only the
        undo of a later step needs."""
        self._pending.append({"note": facts})
        self.notes |= facts

    def done(self, name: str) -> None:
        """The step has ended; written with the next line that is waited for."""
        self._pending.append({"done": name})

    async def undone(self, name: str) -> None:
        """The step has been undone."""
        if name in self._begun:
            self._begun.remove(name)
        await self._durable({"undone": name})

    def finish(self) -> None:
        """The operation is over, well or undone: the file goes. Calling it twice is fine."""
        self._pending.clear()
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file without removing it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _durable(self, *records: dict[str, Any]) -> None:
        lines = [*self._pending, *records]
        content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        try:
            await outlast(asyncio.to_thread(self._append, content.encode()))
        except OSError as error:
            raise JournalError(path=self.path, detail=error.strerror) from error
        self._pending.clear()

    def _append(self, content: bytes) -> None:
        fresh = self._fd < 0
        if fresh:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, end)  # no torn line in the middle
            raise
        if fresh:
            sync_directory(self.path.parent)

    def _replay(self, record: dict[str, Any]) -> None:
        match record:
            case {"operation": operation, "data": data}:
                self.operation, self.data = operation, data
            case {"begin": name}:
                self._begun.append(name)
            case {"undone": name} if name in self._begun:
                self._begun.remove(name)
            case {"note": dict(facts)}:
                self.notes |= facts


class _Running:
    """The step that is being done in this context, for `inside`."""

    def __init__(self, name: str, hook: PointHook) -> None:
        self.name = name
        self.hook = hook
        self.reached = False


_running: contextvars.ContextVar[_Running | None] = contextvars.ContextVar("step", default=None)


def inside() -> None:
    """Called by a step in its middle, where a crash would leave the most behind.

    Costs nothing unless the run has a hook. Works in a thread started by asyncio.to_thread.
    """
    running = _running.get()
    if running is not None:
        running.reached = True
        running.hook("inside", running.name)


def flatten(steps: Steps) -> list[Step]:
    """Every single step, in order."""
    return [member for step in steps for member in _members(step)]


async def run(steps: Steps, journal: Journal, on_point: PointHook | None = None) -> None:
    """Do the steps in order. What goes wrong is raised after the steps begun have been undone.

    ``on_point`` is called before, inside and after each step; with it, a step that never calls
    `inside` raises MissingPointError. The caller finishes the journal after success. After a
    failure it is finished here when every undo worked; else it stays for a later start, and the
    exception carries a note per undo that failed. Cancelling undoes too, and cancelling again
    does not stop the undoing.
    """
    begun: list[Step] = []
    try:
        for step in steps:
            members = _members(step)
            if on_point is not None:
                for member in members:
                    on_point("before", member.name)
            await journal.begin(*(member.name for member in members))
            begun += members
            await _together([_one(member, journal, on_point) for member in members])
    except (Exception, asyncio.CancelledError) as error:
        for failure in await outlast(_undo(begun, journal)):
            error.add_note(f"an undo failed too: {failure}")
        raise


async def undo_all(steps: Steps, journal: Journal) -> list[BaseException]:
    """Undo, in reverse, the steps the journal names as begun; the failures, [] when all is well.

    A failing undo does not keep the others from theirs. The journal is finished when none failed.
    Names that are in the journal and not in ``steps`` are reported as failures.
    """
    by_name = {step.name: step for step in flatten(steps)}
    begun = journal.begun
    failures: list[BaseException] = [
        JournalError(path=journal.path, detail=f"it names an unknown step {name!r}")
        for name in begun
        if name not in by_name
    ]
    known = [by_name[name] for name in begun if name in by_name]
    failures += await outlast(_undo(known, journal, finish=not failures))
    return failures


def _members(step: Step | Together) -> tuple[Step, ...]:
    return step.members if isinstance(step, Together) else (step,)


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all; the first error, or a cancellation, cancels the others and waits for them."""
    if len(work) == 1:
        await work[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _one(step: Step, journal: Journal, on_point: PointHook | None) -> None:
    await _do(step, on_point)
    journal.done(step.name)
    if on_point is not None:
        on_point("after", step.name)


async def _do(step: Step, on_point: PointHook | None) -> None:
    if on_point is None:
        await step.do()
        return
    running = _Running(step.name, on_point)
    token = _running.set(running)
    try:
        await step.do()
    finally:
        _running.reset(token)
    if not running.reached:
        raise MissingPointError(name=step.name)


async def _undo(
    begun: Sequence[Step], journal: Journal, finish: bool = True
) -> list[BaseException]:
    failures: list[BaseException] = []
    for step in reversed(begun):
        try:
            await step.undo()
        except Exception as error:
            _log.exception("undoing step %s failed", step.name)
            failures.append(error)
            continue
        try:
            await journal.undone(step.name)
        except JournalError as error:  # a full disk must not keep the rest from being undone
            _log.warning("%s", error)
    if failures or not finish:
        journal.close()
    else:
        journal.finish()
    return failures
