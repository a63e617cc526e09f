"""``./dev bench compare A.json B.json``: did a ratio get worse by more than the margin?

Only ratios are compared: each was measured against its own floor in its own run, so it holds
where absolute times differ between machines and hours.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def compare(before: Path, after: Path, margin: float) -> int:
    """Print each ratio of both files; 1 when any grew by more than ``margin`` (0.1 = 10 %)."""
    old, new = dict(ratios(_headline(before))), dict(ratios(_headline(after)))
    worse = 0
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            print(f"{name:24} only in {before if name in old else after}")
            # A ratio that vanished can hide a loss: it counts as one.
            worse += name not in new
            continue
        change = new[name] / old[name] - 1
        verdict = "worse" if change > margin else "ok"
        worse += verdict == "worse"
        print(f"{name:24} {old[name]:8.3f} → {new[name]:8.3f}  {change:+7.1%}  {verdict}")
    if not old:
        print(f"{before} holds no ratio")
        return 1
    return 1 if worse else 0


def ratios(headline: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every figure called ``ratio…`` of a headline, also inside scenarios.

    A ratio whose name says "theirs over ours" (``ratio_mke2fs``, ``ratio_qemu_img``) is turned
    round, so that smaller is always better.
    """
    for name, value in headline.items():
        if isinstance(value, Mapping):
            yield from ratios(value, f"{prefix}{name}.")
        elif name in ("ratio_mke2fs", "ratio_qemu_img"):
            yield f"{prefix}{name} (inverse)", 1 / float(value)
        elif name.startswith("ratio"):
            yield f"{prefix}{name}", float(value)


def _headline(file: Path) -> Mapping[str, Any]:
    try:
        record: Mapping[str, Any] = json.loads(file.read_text())["headline"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{file}: no benchmark result ({error})") from None
    return record
