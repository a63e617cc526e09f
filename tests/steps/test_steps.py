"""Every failure at every point of every step leaves the world as it was."""

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest

from smallstack import steps
from smallstack.steps import Action, Journal, NoUndo

NAMES = ["a", "b", "c"]


class World:
    """What the steps change: a set of names, and the trace of what was called."""

    def __init__(self) -> None:
        self.things: set[str] = set()
        self.trace: list[str] = []
        self.bad_undo: set[str] = set()

    def step(self, name: str) -> Action:
        async def work() -> None:
            self.trace.append(f"do {name}")
            self.things.add(name)
            steps.inside()
            await asyncio.sleep(0)

        async def reverse() -> None:
            self.trace.append(f"undo {name}")
            if name in self.bad_undo:
                raise OSError(errno.EBUSY, "busy")
            self.things.discard(name)

        return Action(name, work, reverse)

    def steps(self) -> list[Action]:
        return [self.step(name) for name in NAMES]


def _records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_success_keeps_the_journal_for_the_caller(tmp_path: Path) -> None:
    world = World()
    points: list[tuple[str, str]] = []
    journal = Journal.create(tmp_path / "j", "create", {"ip": "198.51.100.2"})
    await steps.run(world.steps(), journal, lambda where, name: points.append((where, name)))
    assert world.things == set(NAMES)
    assert points == [(w, n) for n in NAMES for w in ("before", "inside", "after")]
    assert _records(journal.path) == [
        {"operation": "create", "data": {"ip": "198.51.100.2"}},
        {"begin": "a"},
        {"done": "a"},
        {"begin": "b"},
        {"done": "b"},
        {"begin": "c"},
    ]
    journal.finish()
    journal.finish()
    assert not journal.path.exists()


@pytest.mark.parametrize("where", ["before", "inside", "after"])
@pytest.mark.parametrize("name", NAMES)
async def test_failure_at_every_point_is_undone(tmp_path: Path, where: str, name: str) -> None:
    world = World()

    def hook(at: str, step: str) -> None:
        if (at, step) == (where, name):
            raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal.create(tmp_path / "j")
    with pytest.raises(OSError, match="No space"):
        await steps.run(world.steps(), journal, hook)
    assert world.things == set()
    assert not journal.path.exists()


@pytest.mark.parametrize("where", ["before", "inside", "after"])
@pytest.mark.parametrize("name", NAMES)
async def test_death_at_every_point_is_undone_later(tmp_path: Path, where: str, name: str) -> None:
    """A forked child dies at the point; what it left is undone from its journal alone."""
    directory = tmp_path / "things"
    directory.mkdir()

    def step(of: str) -> Action:
        async def work() -> None:
            (directory / of).touch()
            steps.inside()

        async def reverse() -> None:
            (directory / of).unlink(missing_ok=True)

        return Action(of, work, reverse)

    def hook(at: str, of: str) -> None:
        if (at, of) == (where, name):
            os._exit(7)

    child = await asyncio.to_thread(_forked, [step(n) for n in NAMES], tmp_path / "j", hook)
    assert child == 7
    if (where, name) == ("before", "a"):
        assert not (tmp_path / "j").exists()
        return
    journal = Journal.load(tmp_path / "j")
    assert journal.operation == "create"
    assert await steps.undo_all([step(n) for n in NAMES], journal) == []
    assert list(directory.iterdir()) == []
    assert not (tmp_path / "j").exists()


def _forked(work: list[Action], path: Path, hook: steps.PointHook) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.new_event_loop().run_until_complete(
                steps.run(work, Journal.create(path, "create"), hook)
            )
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def test_failing_undo_keeps_the_journal_and_the_others_go_on(tmp_path: Path) -> None:
    world = World()
    world.bad_undo = {"b"}

    def hook(at: str, name: str) -> None:
        if (at, name) == ("after", "c"):
            raise ValueError("late")

    journal = Journal.create(tmp_path / "j")
    with pytest.raises(ValueError, match="late") as caught:
        await steps.run(world.steps(), journal, hook)
    assert world.things == {"b"}
    assert world.trace[-3:] == ["undo c", "undo b", "undo a"]
    assert "busy" in caught.value.__notes__[0]
    again = Journal.load(tmp_path / "j")
    assert again.begun == ["b"]
    world.bad_undo = set()
    assert await steps.undo_all(world.steps(), again) == []
    assert world.things == set()
    assert not (tmp_path / "j").exists()


async def test_cancel_twice_still_undoes(tmp_path: Path) -> None:
    world = World()
    reached, release = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        reached.set()
        await asyncio.Event().wait()

    async def slow_undo() -> None:
        reached.set()
        await release.wait()
        world.trace.append("undo slow")

    journal = Journal.create(tmp_path / "j")
    task = asyncio.create_task(
        steps.run([world.step("a"), Action("slow", work, slow_undo)], journal)
    )
    await reached.wait()
    reached.clear()
    task.cancel()
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.trace == ["do a", "undo slow", "undo a"]
    assert world.things == set()
    assert not journal.path.exists()


async def test_step_without_a_kill_point_fails_under_a_hook(tmp_path: Path) -> None:
    async def work() -> None:
        pass

    step = Action("plain", work, NoUndo("it changes nothing"))
    with pytest.raises(steps.MissingPointError, match="'plain'"):
        await steps.run([step], Journal.create(tmp_path / "j"), lambda *_: None)
    await steps.run([step], Journal.create(tmp_path / "k"))


async def test_inside_reaches_the_hook_from_a_thread(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    async def work() -> None:
        await asyncio.to_thread(steps.inside)

    step = Action("threaded", work, NoUndo("it changes nothing"))
    await steps.run([step], Journal.create(tmp_path / "j"), lambda *p: seen.append(p))
    assert ("inside", "threaded") in seen


async def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", "create")
    await journal.begin("a")
    await journal.note(ip="198.51.100.9")
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"beg')
    again = Journal.load(journal.path)
    assert (again.begun, again.notes) == (["a"], {"ip": "198.51.100.9"})
    await again.undone("a")
    assert _records(journal.path)[-1] == {"undone": "a"}
    again.close()


async def test_unknown_step_in_a_journal_is_reported(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j")
    await journal.begin("gone")
    failures = await steps.undo_all([], journal)
    assert "unknown step 'gone'" in str(failures[0])
    assert journal.path.exists()


async def test_journal_on_a_bad_place(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "none" / "j")
    with pytest.raises(steps.JournalError, match="No such file"):
        await steps.run(World().steps(), journal)


async def test_together_is_one_write_and_every_member_is_undone(tmp_path: Path) -> None:
    world = World()
    both = asyncio.Barrier(2)

    def meeting(name: str) -> Action:
        async def work() -> None:
            await both.wait()  # only at the same time can they both get here
            steps.inside()
            world.things.add(name)

        return Action(name, work, world.step(name).reverse)

    journal = Journal.create(tmp_path / "j")
    group = steps.Together(meeting("b"), meeting("c"))
    await steps.run([world.step("a"), group], journal, lambda *_: None)
    assert world.things == set(NAMES)
    assert journal.begun == NAMES
    assert _records(journal.path)[3:] == [{"begin": "b"}, {"begin": "c"}]
    assert await steps.undo_all([world.step("a"), group], journal) == []
    assert world.things == set()
    assert world.trace[-3:] == ["undo c", "undo b", "undo a"]


async def test_a_failure_in_a_group_ends_the_others_first(tmp_path: Path) -> None:
    world = World()
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("b")

    async def fail() -> None:
        raise OSError(errno.EIO, "broken")

    async def reverse() -> None:
        ended.append("undo")

    group = steps.Together(Action("b", forever, reverse), Action("c", fail, reverse))
    with pytest.raises(OSError, match="broken"):
        await steps.run([world.step("a"), group], Journal.create(tmp_path / "j"))
    assert ended == ["b", "undo", "undo"]
    assert world.things == set()
    assert not (tmp_path / "j").exists()
