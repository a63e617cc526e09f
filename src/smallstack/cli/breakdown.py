"""The breakdown of one create: phase, ours, the paper's; as a table and as a picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from smallstack.control.create import Created
from smallstack.telemetry.timeline import Phase

# Appendix 2 of the paper, "Appliance (container) VM". Its log has whole seconds, so a step that
# began and ended in the same second is only known to be below one; the total is from `time`.
PAPER_TOTAL = "1.216 s"
PAPER = {"get image": "< 1 s", "unpack": "< 1 s", "start to DHCP ACK": "< 1.2 s"}

# Moments of the Hypervisor's timeline: just before QEMU's process is made, the ACK is sent.
QEMU_EXEC, DHCP_ACK = "qemu exec", "dhcp ack"


def stages(created: Created) -> list[tuple[str, float]]:
    """(stage, seconds) as the paper cuts a create: by the progress messages at the client."""
    edges = [("connect", 0.0)]
    names = {"getting": "get image", "unpacking": "unpack", "starting": "start to DHCP ACK"}
    for seconds, text in created.messages:
        name = names.get(text.split(" ", maxsplit=1)[0].rstrip(":"))
        if name:
            edges.append((name, seconds))
    edges.append(("", created.seconds_to_ack))
    return [
        (name, following - begin) for (name, begin), (_, following) in itertools.pairwise(edges)
    ]


def table(created: Created, process_seconds: float) -> str:
    """The breakdown as text: stages, the agent's own phases, totals."""
    rows = [("phase", "ours", "paper's")]
    rows += [(name, f"{s * 1000:.1f} ms", PAPER.get(name, "")) for name, s in stages(created)]
    rows.append(("connect to DHCP ACK", f"{created.seconds_to_ack:.3f} s", ""))
    rows.append(("vm-control create-vm, whole process", f"{process_seconds:.3f} s", PAPER_TOTAL))
    lines = _aligned(rows)
    if created.timeline:
        inner = [("inside the Hypervisor", "starts at", "takes")]
        inner += [
            (p.name, f"{_offset(created, p):.1f} ms", _takes(p))
            for p in sorted(created.timeline, key=lambda p: p.start_ns)
        ]
        lines += ["", *_aligned(inner)]
    return "\n".join(lines)


def picture(created: Created, file: Path) -> None:
    """Draw the timeline of one create into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = _bars(created)
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.36 * len(bars)), layout="constrained")
    for row, (name, begin, width, colour) in enumerate(bars):
        axes.barh(row, max(width, 0.3), left=begin, color=colour, height=0.6)
        axes.annotate(f" {name}  {width:.1f} ms", (begin + width, row), va="center", fontsize=8)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, created.seconds_to_ack * 1000 * 1.35)
    axes.set_xlabel("ms since the client's connect()")
    axes.set_title(
        f"create-vm: connect to DHCP ACK {created.seconds_to_ack:.3f} s (the paper: {PAPER_TOTAL})"
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _bars(created: Created) -> list[tuple[str, float, float, str]]:
    bars, at = [], 0.0
    for name, seconds in stages(created):
        bars.append((f"client: {name}", at, seconds * 1000, "#3b6ea8"))
        at += seconds * 1000
    phases = sorted(created.timeline, key=lambda p: p.start_ns)
    bars += [
        (phase.name, _offset(created, phase), phase.duration_ns / 1e6, "#d98e32")
        for phase in phases
        if phase.duration_ns
    ]
    marks = {phase.name: phase for phase in phases if not phase.duration_ns}
    if {QEMU_EXEC, DHCP_ACK} <= marks.keys():
        begin, end = (_offset(created, marks[name]) for name in (QEMU_EXEC, DHCP_ACK))
        bars.append(("QEMU exec to DHCP ACK", begin, end - begin, "#7aa874"))
    return bars


def _takes(phase: Phase) -> str:
    return f"{phase.duration_ns / 1e6:.1f} ms" if phase.duration_ns else "(a moment)"


def _offset(created: Created, phase: Phase) -> float:
    """Milliseconds from the client's connect() to the phase: one clock on one machine."""
    return (phase.start_ns - created.connect_started_ns) / 1e6


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first = max(len(row[0]) for row in rows)
    return [f"  {a:<{first}}  {b:>12}  {c:>10}".rstrip() for a, b, c in rows]
