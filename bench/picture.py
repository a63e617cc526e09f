"""Pictures of benchmark results."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.create import Sample


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
