"""What every benchmark leaves: all samples and the host's facts as JSON, one last line of JSON."""

import json
import mmap
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import smallstack
from smallstack.telemetry.errors import SmallStackError


class BenchError(SmallStackError):
    """{detail}"""


def host_facts() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, kernel, QEMU, versions."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "qemu": _first_line(["qemu-system-x86_64", "--version"]),
        "python": platform.python_version(),
        "smallstack": smallstack.__version__,
        "commit": _first_line(["git", "describe", "--always", "--dirty"]),
    }


def finish(
    name: str,
    headline: Mapping[str, Any],
    samples: Mapping[str, Sequence[Any]],
    file: Path | None,
) -> None:
    """Write the JSON file, if one is wanted, and print the headline figures as the last line."""
    if file:
        record = {
            "benchmark": name,
            "host": host_facts(),
            "headline": headline,
            "samples": samples,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(headline), flush=True)


def median(values: Sequence[float], digits: int = 4) -> float:
    """The median, rounded for print."""
    return round(statistics.median(values), digits)


def spread(values: Sequence[float], unit: float = 1000.0, name: str = "ms") -> str:
    """``median (minimum … maximum)`` in ``name`` units."""
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid * unit:.1f} {name} ({low * unit:.1f} … {high * unit:.1f})"


def warm(size: int) -> None:
    """Touch as much memory as ``size`` bytes of files need in the page cache, and give it back.

    In a virtual machine free pages may have been returned to the host, and whoever touches them
    first pays for it: that has to be none of those that are compared.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size + size // 4, flags=flags).close()


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    return (done.stdout.splitlines() or ["unknown"])[0]
