"""The paper's three scenarios, phase by phase, ours beside theirs (the paper's Appendix 2).

============  ================================================================================
baseline      a Debian with systemd, its image nowhere yet, booted by GRUB, until SSH is open
optimised     the same image, its objects in the cache, its kernel booted directly
appliance     a stripped kernel and an init, until DHCP: the samples of `bench.create`
============  ================================================================================

*next* is the baseline's create once more without a start: what is left of fetching, unpacking and
the boot loader when the brick is there. Theirs were measured on a Xeon with KVM and disks that
turn, ours on this machine: the table says where time goes, the totals are not a race. Each Debian
is created once: its guest takes a minute under software emulation.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bench.debian import debian_root
from smallstack.cli.breakdown import DHCP_ACK, QEMU_EXEC
from smallstack.cli.demo_inside import add_image, decode_created, run_tool
from smallstack.control.create import Created
from smallstack.control.sandbox import Sandbox

FETCH, UNPACK, LOADER, LAYER = "fetch", "unpack", "boot loader", "layer"
START, SSH, TOTAL = "start to DHCP ACK", "to SSH open", "total"
ROWS: Final = (FETCH, UNPACK, LOADER, LAYER, START, SSH, TOTAL)
_PHASES: Final = {
    FETCH: ("get image", "fetch objects"),
    UNPACK: ("unpack",),
    LOADER: ("make boot loader", "install boot loader"),
    LAYER: ("layer",),
}
IMAGE: Final = "debian"
_MACHINE: Final = ["--memory=1G", "--milli-cpus=1000", "--virtual-cpus=2", "--dhcp-timeout=5m"]


class Scenario(NamedTuple):
    """Seconds by row; the paper gives fetching and unpacking as one."""

    name: str
    ours: Mapping[str, float]
    paper: Mapping[str, float]


_PAPER: Final = {
    "baseline": {UNPACK: 5.0, LOADER: 1.0, START: 3.0, SSH: 1.0, TOTAL: 10.254},
    "optimised": {UNPACK: 2.5, START: 3.0, SSH: 1.0, TOTAL: 7.447},
    "next": {},
    "appliance": {TOTAL: 1.216},
}


async def debian(sandbox: Sandbox) -> list[Scenario]:
    """Create the Debian VMs; needs the sandbox's image server to be without that image."""
    root = await asyncio.to_thread(debian_root)
    print(f"adding {root}", file=sys.stderr, flush=True)
    await add_image(sandbox, IMAGE, root)
    loader, kernel = ["--boot-loader"], ["--machine-type", "q35"]
    return [
        await _create(sandbox, "baseline", [*loader, "--probe-port", "22"]),
        await _create(sandbox, "next", [*loader, "--do-not-start"]),
        await _create(sandbox, "optimised", [*kernel, "--probe-port", "22"]),
    ]


async def _create(sandbox: Sandbox, name: str, options: list[str]) -> Scenario:
    print(f"{name}: creating", file=sys.stderr, flush=True)
    asked = ["create-vm", "--hostname", name, "--image-name", IMAGE, "--format", "json"]
    created = decode_created(await run_tool(sandbox, *asked, *_MACHINE, *options))
    await run_tool(sandbox, "destroy-vm", created.ip)
    ours = rows({p.name: p.duration_ns / 1e9 for p in created.timeline})
    if created.seconds_to_port is not None:
        ours |= _guest(created)
        ours[SSH] = created.seconds_to_port - created.seconds_to_ack
        ours[TOTAL] = created.seconds_to_port
    return Scenario(name, ours, _PAPER[name])


def appliance(phases: Mapping[str, float], guest_s: float, process_s: float) -> Scenario:
    """The third, from medians of what `bench.create` has measured."""
    ours = rows(phases) | {START: guest_s, TOTAL: process_s}
    return Scenario("appliance", ours, _PAPER["appliance"])


def rows(phases: Mapping[str, float]) -> dict[str, float]:
    """The agent's phases as rows of the table; what a create did not do took no time."""
    return {row: sum(phases.get(name, 0.0) for name in names) for row, names in _PHASES.items()}


def _guest(created: Created) -> dict[str, float]:
    marks = {phase.name: phase for phase in created.timeline}
    return {START: (marks[DHCP_ACK].end_ns - marks[QEMU_EXEC].start_ns) / 1e9}


def table(scenario: Scenario) -> str:
    """One scenario as text."""
    lines = [f"  {scenario.name:24} {'ours':>12} {'the paper':>12}"]
    for row in ROWS:
        if row in scenario.ours or row in scenario.paper:
            ours, paper = _seconds(scenario.ours, row), _seconds(scenario.paper, row)
            lines.append(f"    {row:22} {ours:>12} {paper:>12}".rstrip())
    if UNPACK in scenario.paper:
        lines.append("    (the paper's unpack has its fetch in it)")
    return "\n".join(lines)


def _seconds(times: Mapping[str, float], row: str) -> str:
    if row not in times:
        return ""
    seconds = times[row]
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def record(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """What the headline says of them: milliseconds by row, and the paper's total in seconds."""
    return {
        scenario.name: {
            **{
                row.replace(" ", "_") + "_ms": round(s * 1000, 2)
                for row, s in scenario.ours.items()
            },
            **({"paper_s": scenario.paper[TOTAL]} if TOTAL in scenario.paper else {}),
        }
        for scenario in scenarios
    }
