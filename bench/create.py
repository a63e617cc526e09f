"""``./dev bench create``: an appliance VM from connect to DHCP ACK, beside its floor.

Two clocks over the same creates: ``median_s`` from the client's ``connect()`` on a fresh TLS
connection to its receipt of the message that tells the DHCP ACK, and ``process_median_s`` from
exec to exit of ``vm-control create-vm``. The floor is what no agent can go below: the agent's own
QEMU argument vector (checked to be the same, and printed), from a prepared layer, with the same
DHCP responder on a bridge of its own, exec to ACK. The two alternate. The paper's three scenarios
come after that (see `bench.scenarios`), then a Debian root with its boot loader beside loop mount,
copy and ``grub-install`` (see `bench.first`).
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from bench import first, picture, scenarios
from bench.debian import debian_root
from bench.first import Firsts
from bench.floor import Floor
from bench.results import finish, median, spread
from bench.scenarios import Scenario
from smallstack.cli.breakdown import DHCP_ACK, QEMU_EXEC
from smallstack.cli.demo_inside import IMAGE, add_image, create_process, run_tool
from smallstack.control.create import Created
from smallstack.control.namespace import become_init, inside, prepare, run_in_namespaces
from smallstack.control.sandbox import Sandbox
from smallstack.settings import cache_directory

PAPER_S = 1.216
FIRST_TURNS = 5


class Sample(NamedTuple):
    """One create, seconds: both clocks, QEMU's exec to ACK, the agent's own share."""

    ack_s: float
    process_s: float
    guest_s: float
    phases: dict[str, float]

    @property
    def agent_s(self) -> float:
        """What the create took besides QEMU and the guest."""
        return self.ack_s - self.guest_s


def run(
    count: int, warm_up: int, json_file: Path | None, picture_file: Path, *, debian: bool = True
) -> int:
    """Run the benchmark in namespaces of its own; the exit status. ``debian``: all scenarios."""
    if not inside():
        if os.geteuid() != 0:
            print("bench: namespaces, a bridge and taps need root", file=sys.stderr)
            return 1
        return run_in_namespaces([sys.executable, "-m", "bench", *sys.argv[1:]])
    become_init()
    prepare()
    directory = cache_directory() / f"bench-{os.getpid()}-{time.time_ns():x}"
    directory.mkdir(parents=True)
    try:
        uvloop.run(_run(directory, count, warm_up, json_file, picture_file, debian))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


async def _run(
    directory: Path,
    count: int,
    warm_up: int,
    json_file: Path | None,
    picture_file: Path,
    debian: bool,
) -> None:
    sandbox = Sandbox(directory, directory / "logs")
    samples: list[Sample] = []
    floors: list[float] = []
    found: list[Scenario] = []
    firsts: Firsts | None = None
    try:
        await sandbox.start(addresses=16)
        await add_image(sandbox, IMAGE, Path(os.environ["SMALLSTACK_APPLIANCE"]) / "root")
        async with Floor.prepared(sandbox, directory) as floor:
            print("QEMU's arguments, the agent's and the floor's alike:")
            print("  " + " ".join(floor.arguments))
            for number in range(-warm_up, count):
                sample, floor_s = await _create(sandbox, number), await floor.run()
                if number >= 0:
                    samples.append(sample)
                    floors.append(floor_s)
                    print(
                        f"{number + 1:3}  ack {sample.ack_s:.3f} s  tool {sample.process_s:.3f} s  "
                        f"agent {sample.agent_s * 1000:5.1f} ms  floor {floor_s:.3f} s",
                        flush=True,
                    )
        if debian:
            found = await scenarios.debian(sandbox)
            firsts = await first.measure(sandbox, scenarios.IMAGE, debian_root(), FIRST_TURNS)
    finally:
        await sandbox.stop()
    _report(samples, floors, found, firsts, json_file, picture_file)


async def _create(sandbox: Sandbox, number: int) -> Sample:
    created, process_s = await create_process(sandbox, f"bench-{number + 100}", quiet=True)
    await run_tool(sandbox, "destroy-vm", created.ip)
    phases = {p.name: p.duration_ns / 1e9 for p in created.timeline}
    return Sample(created.seconds_to_ack, process_s, guest_seconds(created), phases)


def guest_seconds(created: Created) -> float:
    """From just before QEMU's process was made to the DHCP server's ACK."""
    marks = {phase.name: phase for phase in created.timeline}
    return (marks[DHCP_ACK].end_ns - marks[QEMU_EXEC].start_ns) / 1e9


def _report(
    samples: list[Sample],
    floors: list[float],
    found: list[Scenario],
    firsts: Firsts | None,
    json_file: Path | None,
    picture_file: Path,
) -> None:
    acks = [s.ack_s for s in samples]
    processes = [s.process_s for s in samples]
    agents = [s.agent_s for s in samples]
    print()
    print(f"  connect to DHCP ACK          {spread(acks)}")
    print(f"  floor: QEMU exec to ACK      {spread(floors)}")
    print(f"  QEMU exec to ACK, created    {spread([s.guest_s for s in samples])}")
    print(f"  the agent's share            {spread(agents)}")
    print(f"  vm-control, whole process    {spread(processes)}    the paper: {PAPER_S} s")
    names = list(dict.fromkeys(name for s in samples for name in s.phases))
    for name in names:
        print(f"    {name:26} {spread([s.phases.get(name, 0.0) for s in samples])}")
    phases = {name: median([s.phases.get(name, 0.0) for s in samples], 6) for name in names}
    guest_s = median([s.guest_s for s in samples])
    found = [*found, scenarios.appliance(phases, guest_s, median(processes))]
    for scenario in found:
        print(scenarios.table(scenario))
    picture.creates(samples, floors, picture_file)
    print(f"picture: {picture_file.absolute()}")
    second = picture_file.with_stem(picture_file.stem + "-scenarios")
    picture.scenarios(found, second)
    print(f"picture: {second.absolute()}")
    more: dict[str, list[Any]] = {}
    if firsts is not None:
        print(firsts.table())
        third = picture_file.with_stem(picture_file.stem + "-first")
        picture.boots(firsts.bars(), third)
        print(f"picture: {third.absolute()}")
        more = {f"debian, {name}": list(values) for name, values in firsts.samples.items()}
    headline = {
        "n": len(samples),
        "median_s": median(acks),
        "process_median_s": median(processes),
        "floor_median_s": median(floors),
        "ratio": round(median(acks) / median(floors), 4),
        "agent_ms": round(median(agents) * 1000, 1),
        "debian": firsts.headline() if firsts is not None else {},
        "scenarios": scenarios.record(found),
    }
    finish(
        "create",
        headline,
        {
            "creates": [{**s._asdict(), "agent_s": s.agent_s} for s in samples],
            "floor_s": floors,
            **more,
        },
        json_file,
    )
