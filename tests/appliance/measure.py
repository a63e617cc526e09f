"""How long the appliance takes from QEMU's exec to its DHCP acknowledgement, variants in turn.

    python -m tests.appliance.measure [-n RUNS] [--rapid] NAME=KERNEL,ROOT-TREE[,ARGUMENTS] …

Without variants: the built appliance alone. One line for each variant: the medians in milliseconds
of exec to DISCOVER, to REQUEST, to the ACK that is sent, to the guest's "ready" line; the least of
the ACKs; QEMU's processor time up to then. `--rapid` answers the DISCOVER with the ACK (RFC 4039).
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from .guest import KERNEL_ARGUMENTS, Guest, Wire, make_disk
from .test_boot import ACK, LEASE, OFFER, seconds


def cpu_ms(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def one_boot(kernel: Path, disk: Path, arguments: str, *, rapid: bool) -> list[float]:
    """Times of one boot: DISCOVER, REQUEST (with `rapid` the same), ACK, ready; processor time."""
    with tempfile.TemporaryDirectory() as name, Wire(Path(name)) as wire:
        copy = Path(name) / "disk.raw"
        copy.write_bytes(disk.read_bytes())
        started = time.monotonic()
        with Guest(kernel, copy, Path(name), netdev=wire.netdev, arguments=arguments) as guest:
            query = wire.next_dhcp()
            times = [time.monotonic()]
            if rapid:
                wire.answer(query, ACK, *LEASE, seconds(3600), (80, b""))
            else:
                wire.answer(query, OFFER, *LEASE, seconds(3600))
                query = wire.next_dhcp()
                times.append(time.monotonic())
                wire.answer(query, ACK, *LEASE, seconds(3600))
            times.append(time.monotonic())
            cpu = cpu_ms(guest.process.pid)
            guest.wait_line("smallstack: ready ")
            times.append(time.monotonic())
    if rapid:
        times.insert(1, times[0])
    return [(at - started) * 1000 for at in times] + [cpu]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10, help="runs of each variant")
    parser.add_argument("--rapid", action="store_true", help="answer with a rapid commit")
    parser.add_argument("variants", nargs="*", help="NAME=KERNEL,ROOT-TREE[,arguments]")
    options = parser.parse_args()
    variants = {}
    with tempfile.TemporaryDirectory() as name:
        for text in options.variants or [f"appliance=,{os.environ['SMALLSTACK_APPLIANCE']}/root"]:
            label, rest = text.split("=", 1)
            kernel, tree, *more = rest.split(",", 2)
            disk = Path(name) / f"{label}.raw"
            make_disk(Path(tree), disk)
            path = Path(kernel) if kernel else next((Path(tree) / "boot").glob("vmlinuz-*"))
            variants[label] = (path, disk, " ".join([KERNEL_ARGUMENTS, *more]))
        samples: dict[str, list[list[float]]] = {label: [] for label in variants}
        for _ in range(options.n):
            for label, (path, disk, arguments) in variants.items():
                samples[label].append(one_boot(path, disk, arguments, rapid=options.rapid))
    print(f"{'':20} discover  request      ack    ready | least ack   cpu at ack")
    for label, rows in samples.items():
        columns = list(zip(*rows, strict=True))
        middle = [statistics.median(column) for column in columns]
        print(
            f"{label:20}" + "".join(f"{value:9.1f}" for value in middle[:4]),
            f"| {min(columns[2]):9.1f} {middle[4]:10.0f}",
        )


if __name__ == "__main__":
    main()
