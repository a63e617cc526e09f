"""What is there, counted from outside: to compare before and after."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from smallstack.hypervisor import users
from smallstack.machine.cgroup import PREFIX, state_name

CACHES = ("objects", "bricks")
"""Directories whose content is bounded and shared, and may grow."""


@dataclass
class Snapshot:
    """One look. Two are equal when nothing was left or lost in between."""

    links: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    processes: Counter[tuple[int, str]] = field(default_factory=Counter)
    """User and program of every process in this network namespace."""
    descriptors: Counter[str] = field(default_factory=Counter)
    """The agent's, by kind."""
    loops: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    """Control groups of the agent and of its machines, each with how many processes it has."""
    namespaces: int = 0
    rules: str = ""

    def difference(self, other: "Snapshot") -> str:
        """One line per field that differs."""
        found = []
        for item in fields(self):
            mine, its = getattr(self, item.name), getattr(other, item.name)
            # A connection that was being closed at the first look is no loss.
            if item.name == "descriptors":
                mine = mine & its
            if mine != its:
                found.append(f"{item.name}: {_apart(mine, its)}")
        return "\n".join(found)


def take(agent_pid: int, directories: Sequence[Path]) -> Snapshot:
    """Look at everything; the caller is in the agent's network namespace."""
    links = json.loads(_run("ip", "-j", "link"))
    return Snapshot(
        links=sorted(link["ifname"] for link in links),
        files=sorted(str(p) for d in directories for p in _files(d)),
        processes=Counter((_user(uid), name) for _, uid, name in processes()),
        descriptors=_descriptors(agent_pid),
        loops=_loops([str(directory) for directory in directories]),
        groups=[group for directory in directories for group in groups(directory)],
        namespaces=len(_namespaces(agent_pid)),
        rules=_rules(),
    )


def groups(state: Path) -> list[str]:
    """The control groups of the agent with that state directory, in whatever hierarchy."""
    found = []
    for root, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            path = Path(root) / name
            if PREFIX + state_name(state) in path.parts:
                found.append(f"{path}: {len((path / 'cgroup.procs').read_text().split())}")
    return sorted(found)


def _user(uid: int) -> int:
    """The first of QEMU's uids for all of them: VMs that come and go have any."""
    return users.FIRST if uid in range(users.FIRST, users.FIRST + users.COUNT) else uid


def _loops(directories: list[str]) -> list[str]:
    """Loop devices over files of the agent's; those of other tests come and go meanwhile."""
    found = []
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = place.read_text().strip()
        except OSError:
            continue
        if any(file.startswith(directory) for directory in directories):
            found.append(f"{place.parent.parent.name}: {file}")
    return sorted(found)


def processes() -> Iterator[tuple[int, int, str]]:
    """Pid, uid and program of every process in this network namespace but this one."""
    own = str(Path("/proc/thread-self/ns/net").readlink())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if str((entry / "ns" / "net").readlink()) != own:
                continue
            program = (entry / "cmdline").read_bytes().split(b"\0")[0]
            if program:
                name = os.path.basename(os.fsdecode(program))  # noqa: PTH119
                yield int(entry.name), entry.stat().st_uid, name
        except OSError:
            continue


def _files(directory: Path) -> Iterator[Path]:
    for root, names, files in os.walk(directory):
        if Path(root) == directory or Path(root).parent == directory:
            names[:] = [name for name in names if name not in CACHES]
        for name in [*files, *names]:
            yield Path(root) / name


def _descriptors(pid: int) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        kinds[re.sub(r"[0-9]+", "N", target.partition(" ")[0])] += 1
    return kinds


def _namespaces(pid: int) -> set[str]:
    """Network namespaces that the agent or its threads are in, or hold open."""
    found = set()
    for entry in (*Path(f"/proc/{pid}/task").glob("*/ns/net"), *Path(f"/proc/{pid}/fd").iterdir()):
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("net:"):
            found.add(target)
    return found


def _rules() -> str:
    """The rules and sets, without counters."""
    text = re.sub(r"packets \d+ bytes \d+", "", _run("nft", "list", "ruleset"))
    return " ".join(text.split())


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _apart(mine: object, its: object) -> str:
    if isinstance(mine, Counter) and isinstance(its, Counter):
        return f"gone {dict(mine - its)}, new {dict(its - mine)}"
    if isinstance(mine, list) and isinstance(its, list):
        return f"gone {sorted(set(mine) - set(its))}, new {sorted(set(its) - set(mine))}"
    return f"{mine!r} is now {its!r}"
