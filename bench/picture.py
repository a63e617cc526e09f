"""Pictures of benchmark results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.create import Sample
    from bench.scenarios import Scenario


def creates(samples: Sequence["Sample"], floors: Sequence[float], file: Path) -> None:
    """A stacked bar per create (the agent's share on QEMU's exec to ACK) and the floor beside."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    places = range(len(samples))
    guests = [s.guest_s * 1000 for s in samples]
    agents = [s.agent_s * 1000 for s in samples]
    tools = [(s.process_s - s.ack_s) * 1000 for s in samples]
    axes.bar(places, guests, 0.4, label="QEMU exec to DHCP ACK", color="#3b6ea8")
    axes.bar(places, agents, 0.4, bottom=guests, label="agent and wire", color="#d98e32")
    tops = [g + a for g, a in zip(guests, agents, strict=True)]
    axes.bar(places, tools, 0.4, bottom=tops, label="the tool around it", color="#c9c9c9")
    beside = [place + 0.42 for place in places]
    axes.bar(beside, [f * 1000 for f in floors], 0.3, label="floor", color="#7aa874")
    axes.set_xlabel("create")
    axes.set_ylabel("ms")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def scenarios(found: Sequence["Scenario"], file: Path) -> None:
    """Two bars per scenario, ours above the paper's, made of their rows in seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from bench.scenarios import ROWS, TOTAL

    palette = ("#c9c9c9", "#3b6ea8", "#d98e32", "#7a9fc8", "#7aa874", "#a9a9a9")
    colours = dict(zip(ROWS, palette, strict=False))
    figure, axes = plt.subplots(figsize=(10, 1 + 0.9 * len(found)), layout="constrained")
    told: set[str] = set()
    for place, scenario in enumerate(found):
        for row, times in enumerate((scenario.ours, scenario.paper)):
            start, height = 0.0, place + 0.36 * row
            for name in ROWS:
                if name == TOTAL or not times.get(name):
                    continue
                label = name if name not in told else None
                told.add(name)
                colour = colours[name]
                axes.barh(height, times[name], 0.32, left=start, label=label, color=colour)
                start += times[name]
            if not start:  # a total without its parts, or next to nothing
                start = times.get(TOTAL, 0.0)
                axes.barh(height, start, 0.32, color="#e4e4e4")
            if times:
                total = times.get(TOTAL, start)
                whose = scenario.name if row == 0 else "the paper"
                axes.text(
                    max(start, 0), height, f" {whose}: {total:.3g} s", va="center", fontsize=8
                )
    axes.set_ylim(len(found) - 0.3, -0.4)
    axes.set_yticks([])
    axes.set_xlabel("s")
    axes.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.2), frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def boots(bars: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """A bar per way to a bootable disk, made of its phases in seconds, one below the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {
        "get image": "#7aa874",
        "fetch": "#a5c9a1",
        "fetch objects": "#a5c9a1",
        "sha512sum": "#d9cf8e",
        "layer": "#555555",
        "unpack": "#3b6ea8",
        "mkfs": "#c9c9c9",
        "copy": "#7a9fc8",
        "install boot loader": "#d98e32",
        "grub-install": "#d98e32",
        "umount": "#a9a9a9",
    }
    figure, axes = plt.subplots(figsize=(10, 1 + 0.7 * len(bars)), layout="constrained")
    told: set[str] = set()
    for row, (name, phases) in enumerate(bars.items()):
        start = 0.0
        for phase, seconds in phases.items():
            colour = colours[phase]
            label = phase if phase not in told else None
            told.add(phase)
            axes.barh(row, seconds, 0.6, left=start, label=label, color=colour)
            start += seconds
        axes.text(start, row, f" {start:.2f} s", va="center")
        axes.text(0, row - 0.42, name, fontsize="small")
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlabel("s")
    axes.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.35), frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def times(bars: Mapping[str, float], title: str, file: Path) -> None:
    """A bar per way, in seconds, one below the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 1 + 0.4 * len(bars)), layout="constrained")
    shown = axes.barh(list(bars), list(bars.values()), 0.6, color="#3b6ea8")
    axes.bar_label(shown, fmt=" %.2f s")
    axes.invert_yaxis()
    axes.set_xlabel("s")
    axes.set_title(title, fontsize="medium")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
