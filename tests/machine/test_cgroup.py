"""Shares of the processors: real control groups, and version 2 as a tree of files."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from smallstack.machine import spawn
from smallstack.machine.cgroup import (
    PREFIX,
    CpuGroup,
    CpuGroups,
    CpuShare,
    open_groups,
    remove_group,
    state_name,
)
from smallstack.machine.errors import CgroupError
from smallstack.machine.lifecycle import ExitReason
from smallstack.machine.process import find
from tests.machine.conftest import REAL_QEMU, Launch, MakeSpec

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[CpuGroups]:
    """Real ones, of this test alone."""
    made = open_groups(state_name(tmp_path))
    yield made
    made.close()
    assert not made.directory.exists(), list(made.directory.iterdir())


def members(group: Path) -> set[int]:
    return {int(line) for line in (group / "cgroup.procs").read_text().split()}


# Figures.


@pytest.mark.parametrize(
    ("milli", "nice", "version", "weight"),
    [
        (1000, 0, 1, "1024"),
        (10, 0, 1, "10"),
        (1, 0, 1, "2"),
        (10**9, 0, 1, "262144"),
        (2500, 0, 2, "250"),
        (10, 0, 2, "1"),
        (1, 0, 2, "1"),
        (10**9, 0, 2, "10000"),
        (1000, 5, 1, "336"),
        (1000, -5, 2, "305"),
    ],
)
def test_weight(milli: int, nice: int, version: int, weight: str) -> None:
    found = CpuShare(milli, nice).settings(1 if version == 1 else 2)
    assert found == {"cpu.shares" if version == 1 else "cpu.weight": weight}


def test_quota() -> None:
    assert CpuShare(250, hard=True).settings(2)["cpu.max"] == "25000 100000"
    assert CpuShare(1, hard=True).settings(2)["cpu.max"] == "1000 100000"
    first = CpuShare(1500, hard=True).settings(1)
    assert (first["cpu.cfs_quota_us"], first["cpu.cfs_period_us"]) == ("150000", "100000")


# Where: a machine's files as the kernel shows them, in a tree of ours.


class Tree:
    """What a process sees of its groups: ``proc`` and the mounts."""

    def __init__(self, path: Path) -> None:
        self.proc = path / "proc"
        self.proc.mkdir()
        self.two, self.one = path / "two", path / "with a blank"
        self._mounts = ["21 20 0:19 / / rw shared:1 - ext4 /dev/root rw"]

    def mount_two(self, own: str, controllers: str, root: str = "/") -> Path:
        group = self.two / own.removeprefix(root).lstrip("/")
        group.mkdir(parents=True)
        for directory in {self.two, group.parent, group}:
            (directory / "cgroup.controllers").write_text(controllers + "\n")
            (directory / "cgroup.subtree_control").write_text("memory\n")
        place = str(self.two)
        self._mounts.append(
            f"30 21 0:26 {root} {place} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
        )
        self._own(f"0::{own}")
        return group

    def mount_one(self, own: str) -> Path:
        (self.one / own.lstrip("/")).mkdir(parents=True)
        place = str(self.one).replace(" ", "\\040")
        self._mounts.append(f"31 21 0:27 / {place} rw - cgroup cgroup rw,cpu,cpuacct")
        self._own(f"3:cpu,cpuacct:{own}")
        return self.one / own.lstrip("/")

    def _own(self, line: str) -> None:
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        with (self.proc / "cgroup").open("a") as file:
            file.write(line + "\n")

    def open(self) -> CpuGroups:
        return open_groups("x", proc=self.proc)


def test_version_two_at_its_root(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount_two("/user.slice/session", "cpuset cpu io")
    tree.mount_one("/")
    made = tree.open()
    assert (made.version, made.directory) == (2, tree.two / (PREFIX + "x"))
    assert (tree.two / "cgroup.subtree_control").read_text() == "+cpu\n"
    assert (made.directory / "cgroup.subtree_control").read_text() == "+cpu\n"
    assert (made.directory / "cpu.weight").read_text() == f"{100 * (os.cpu_count() or 1)}\n"
    group = made.group("198.51.100.2", 2000)
    fd = group.open()
    assert Path(f"/proc/self/fd/{fd}").readlink() == made.directory / "198.51.100.2"
    os.close(fd)
    assert group.entrance is None
    assert (group.path / "cpu.weight").read_text() == "200\n"
    assert {path.name for path in group.path.iterdir()} == {"cpu.weight"}
    made.close()


def test_what_is_enabled_already_is_not_written(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount_two("/user.slice/session", "cpu memory")
    control = tree.two / "cgroup.subtree_control"
    control.write_text("cpu memory\n")
    tree.open().close()
    assert control.read_text() == "cpu memory\n"


def test_version_two_in_a_delegated_unit(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    unit = tree.mount_two("/system.slice/h.service/agent", "cpu").parent
    os.setxattr(unit, "user.delegate", b"1")
    made = tree.open()
    assert made.directory == unit / (PREFIX + "x")
    assert (unit / "cgroup.subtree_control").read_text() == "+cpu\n"
    assert (tree.two / "cgroup.subtree_control").read_text() == "memory\n"
    made.close()


def test_version_two_in_a_delegated_unit_without_a_group_for_the_agent(tmp_path: Path) -> None:
    """systemd before 254 could not start the next agent if groups below had controllers."""
    tree = Tree(tmp_path)
    unit = tree.mount_two("/system.slice/h.service", "cpu")
    os.setxattr(unit, "user.delegate", b"1")
    made = tree.open()
    assert made.directory == tree.two / (PREFIX + "x")
    assert (unit / "cgroup.subtree_control").read_text() == "memory\n"
    made.close()


def test_version_one_where_two_lacks_the_controller(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount_two("/", "hugetlb")
    own = tree.mount_one("/system.slice/h.service")
    made = tree.open()
    assert (made.version, made.directory) == (1, own / (PREFIX + "x"))
    assert made.group("a", 1).entrance == b"tasks"
    made.close()


def test_a_part_of_the_hierarchy_is_mounted(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount_two("/box/inner/agent", "cpu", root="/box")
    os.setxattr(tree.two / "inner", "user.delegate", b"1")
    made = tree.open()
    assert made.directory.parent == tree.two / "inner"
    made.close()


def test_none_is_one_clear_error(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.mount_two("/", "hugetlb memory")
    with pytest.raises(CgroupError, match="no hierarchy with the cpu controller is mounted"):
        tree.open()
    (tmp_path / "other").mkdir()
    tree = Tree(tmp_path / "other")
    own = tree.mount_one("/gone")
    own.rmdir()
    with pytest.raises(CgroupError, match=rf"{own}: .*No such file"):
        tree.open()


# Real ones.


class TestReal:
    pytestmark = needs_root

    def test_an_agent_takes_its_directory_again(self, groups: CpuGroups, tmp_path: Path) -> None:
        os.close(groups.group("198.51.100.9", 10).open())
        groups.close()
        assert groups.directory.exists()
        again = open_groups(state_name(tmp_path))
        assert again.directory == groups.directory
        assert not (again.directory / "198.51.100.9").exists()
        again.close()

    def test_groups_of_an_agent_that_was_killed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from smallstack.machine.cgroup import open_groups, state_name\n"
            "made = open_groups(state_name(Path(sys.argv[1])))\n"
            "os.close(made.group('empty', 10).open())\n"
            "os.close(made.group('full', 10).open())\n"
            "(made.directory / 'full' / 'cgroup.procs').write_text('0')\n"
            "print(made.directory, flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as agent:
            assert agent.stdout is not None
            directory = Path(agent.stdout.readline().strip())
            (tmp_path / "other").mkdir()
            open_groups(state_name(tmp_path / "other")).close()
            # It lives: its groups stay, also the empty one.
            assert (directory / "empty").exists()
            agent.kill()
        open_groups(state_name(tmp_path / "other")).close()
        assert not directory.exists()

    def test_only_own_groups_are_removed(self, groups: CpuGroups) -> None:
        other = groups.directory.parent / "not-ours"
        other.mkdir()
        remove_group(other)
        assert other.exists()
        other.rmdir()


def run_in(path: Path, group: tuple[int, bytes | None], program: str) -> tuple[int, int]:
    with (path / "output").open("wb") as output:
        return spawn.spawn(
            b"/bin/sh",
            [b"sh", b"-c", program.encode()],
            [],
            b"/",
            [],
            output.fileno(),
            -1,
            (65534, 65534, []),
            100,
            group,
        )


@pytest.fixture(params=[1, 2])
def hierarchy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A version and where it is mounted, without controllers: the entering is the same."""
    version, point = request.param, tmp_path / "groups"
    point.mkdir()
    one = ["cgroup", "-o", "none,name=smallstack-test", "cgroup"]
    command = ["mount", "-t", *(one if version == 1 else ["cgroup2", "cgroup2"]), str(point)]
    subprocess.run(command, check=True)
    yield version, point
    subprocess.run(["umount", point], check=True)


@pytest.mark.root
def test_a_process_begins_in_its_group(tmp_path: Path, hierarchy: tuple[int, Path]) -> None:
    version, group = hierarchy
    group = group / f"smallstack-test-{os.getpid()}"
    group.mkdir()
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        entrance = b"tasks" if version == 1 else None
        pid, pidfd = run_in(tmp_path, (fd, entrance), "cat /proc/self/cgroup")
        assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status == 0  # type: ignore[union-attr]
        assert pid not in members(group)
        assert f":/{group.name}\n" in (tmp_path / "output").read_text()
        os.close(pidfd)
        # Its directory is gone: nothing is started outside it by accident.
        group.rmdir()
        with pytest.raises(OSError) as raised:
            run_in(tmp_path, (fd, entrance), "true")
        assert raised.value.filename == spawn.GROUP_STAGE
        os.close(fd)
    finally:
        if group.exists():
            group.rmdir()


class TestMachine:
    pytestmark = REAL_QEMU

    async def test_its_group_lives_as_long_as_it(
        self, make_spec: MakeSpec, boot: Launch, groups: CpuGroups
    ) -> None:
        spec = make_spec("obey")
        group = groups.group(spec.name, 2000)
        machine = await boot(replace(spec, cpu=group))
        assert members(group.path) == {machine.pid}
        for name, value in group.share.settings(group.version).items():
            assert (group.path / name).read_text() == value + "\n"
        threads = Path(f"/proc/{machine.pid}/task").iterdir()
        tasks = (group.path / ("tasks" if group.version == 1 else "cgroup.threads")).read_text()
        assert {thread.name for thread in threads} <= set(tasks.split())
        await machine.release()
        # The next agent: its start leaves a group that is in use.
        groups.close()
        open_groups(groups.directory.name.removeprefix(PREFIX)).close()
        again = await find(spec.directory)
        assert again is not None
        assert again.cpu_group == group.path
        assert await again.quit() is ExitReason.QUIT
        assert not group.path.exists()
        groups.directory.rmdir()

    async def test_a_machine_that_died_unseen(
        self, make_spec: MakeSpec, boot: Launch, groups: CpuGroups
    ) -> None:
        spec = make_spec("obey")
        group = groups.group(spec.name, 10)
        machine = await boot(replace(spec, cpu=group))
        pidfd = os.pidfd_open(machine.pid)
        await machine.release()
        os.kill(machine.pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        assert group.path.exists()
        assert await find(spec.directory) is None
        assert not group.path.exists()

    async def test_without_its_group_it_starts_all_the_same(
        self, make_spec: MakeSpec, boot: Launch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        missing = CpuGroup(tmp_path / "no" / "group", 1, CpuShare(10))
        machine = await boot(replace(make_spec("obey"), cpu=missing))
        await machine.started()
        assert machine.cpu_group is None
        await machine.release()
        found = await find(machine.directory)
        assert found is not None
        assert found.cpu_group is None
        await found.quit()
        (record,) = caplog.records
        assert "starts without its share of the processors" in record.getMessage()
        # A directory that is no group: made, and refused only when the process wants in.
        plain = CpuGroup(tmp_path / "plain", 2, CpuShare(10))
        machine = await boot(replace(make_spec("obey"), cpu=plain))
        await machine.started()
        assert machine.cpu_group is None
        assert len(caplog.records) == 2
