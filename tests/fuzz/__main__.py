"""``./dev fuzz [--seconds N | --total N] [--json FILE] [TARGET…]``: run the fuzz targets.

``--seconds`` is each target's own time, ``--total`` is shared by all of them. Prints executions and
edges per target; exits 1 when anything was found, with the input's place.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .targets import FuzzError, all_targets


def main() -> int:
    """Run the named targets, or all; the exit status."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="names; all when none is given")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--total", type=int, help="seconds for all targets together")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    targets = all_targets()
    unknown = set(options.target) - {target.name for target in targets}
    if unknown:
        names = ", ".join(target.name for target in targets)
        print(f"no fuzz target {', '.join(sorted(unknown))}; there are: {names}", file=sys.stderr)
        return 2
    chosen = [t for t in targets if not options.target or t.name in options.target]
    seconds = max(1, options.total // len(chosen)) if options.total else options.seconds
    results = []
    for target in chosen:
        try:
            result = target.run(seconds=seconds)
        except FuzzError as error:
            print(f"fuzz {target.name}: {error}", file=sys.stderr)
            return 1
        results.append(result)
        verdict = "ok" if result.failure is None else "FAILED"
        print(
            f"fuzz {target.name:24} {result.executions:>10} executions "
            f"{result.edges:>6} edges {result.seconds:>4.0f} s  {verdict}",
            flush=True,
        )
        if result.failure:
            print(result.failure, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1))
    failed = [r.target for r in results if r.failure]
    print(
        f"fuzz: {len(results)} targets, {sum(r.executions for r in results)} executions, "
        f"{len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
