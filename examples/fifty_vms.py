"""Creates VMs, some at a time, waits until each has asked for its address, destroys them again.

With the certificate in ~/.ssl:

    python examples/fifty_vms.py hv1:6976 demo/appliance
    python examples/fifty_vms.py localhost:6976 demo/appliance --count 200 --at-once 16

Every VM is named by its number; a line tells its address and how long it took from asking to the
guest's DHCP. Nothing is left behind, also when it fails or is interrupted.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from smallstack.client import (
    CreateVmRequest,
    HypervisorClient,
    ServiceError,
    SmallStackError,
    VmInfo,
)

SECOND = 1_000_000_000


class Made:
    """What has been made so far: seconds by address, and who did not ask in time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.silent: list[str] = []


def request_for(name: str, options: argparse.Namespace) -> CreateVmRequest:
    """A small VM; sizes are MiB, thousandths of a processor, bytes, nanoseconds."""
    return CreateVmRequest(
        dhcp_timeout=options.dhcp_timeout * SECOND,
        minimum_free_bytes=16 << 20,
        skip_bootloader=True,
        vm_info=VmInfo(
            hostname=name,
            image_name=options.image,
            memory_in_mib=options.memory,
            milli_cpus=options.milli_cpus,
            tags={"made-by": "fifty_vms.py"},
        ),
    )


async def worker(names: Iterator[str], made: Made, options: argparse.Namespace) -> None:
    """Creates VMs one after the other, over a connection of its own, while there are names."""
    async with await HypervisorClient.connect(options.hypervisor, options.certificates) as client:
        for name in names:
            begun = time.monotonic()
            reply = await client.new_vm(request_for(name, options))
            seconds = time.monotonic() - begun
            made.seconds[reply.ip_address] = seconds
            if reply.dhcp_timed_out:
                made.silent.append(reply.ip_address)
            asked = "no DHCP in time" if reply.dhcp_timed_out else "has its address"
            print(f"{name:<12} {reply.ip_address:<15} {seconds:7.3f} s  {asked}", flush=True)


async def destroyer(addresses: Iterator[str], options: argparse.Namespace) -> None:
    """Destroys VMs one after the other, while there are any."""
    async with await HypervisorClient.connect(options.hypervisor, options.certificates) as client:
        for address in addresses:
            try:
                await client.destroy_vm(address)
            except ServiceError as error:
                print(f"{address} stays: {error}", file=sys.stderr)


async def run(options: argparse.Namespace) -> int:
    """Everything; the exit code."""
    made = Made()
    # Workers share one iterator: whoever is free takes the next name.
    names = (f"many-{number}" for number in range(1, options.count + 1))
    begun = time.monotonic()
    try:
        async with asyncio.TaskGroup() as creating:
            for _ in range(min(options.at_once, options.count)):
                creating.create_task(worker(names, made, options))
        took = time.monotonic() - begun
        times = sorted(made.seconds.values())
        print(
            f"{len(times)} VMs in {took:.2f} s, {options.at_once} at a time: "
            f"fastest {times[0]:.3f} s, median {statistics.median(times):.3f} s, "
            f"slowest {times[-1]:.3f} s; {len(made.silent)} did not ask for an address"
        )
    finally:
        addresses = iter(made.seconds)
        async with asyncio.TaskGroup() as destroying:
            for _ in range(min(options.at_once, len(made.seconds))):
                destroying.create_task(destroyer(addresses, options))
        print(f"{len(made.seconds)} VMs destroyed", flush=True)
    return 1 if made.silent else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Creates VMs at once, then destroys them.")
    parser.add_argument("hypervisor", help="host:port of the Hypervisor")
    parser.add_argument("image", help="an image that boots by its own kernel, as the appliance")
    parser.add_argument("--count", type=int, default=50, help="how many VMs (50)")
    parser.add_argument("--at-once", type=int, default=8, help="how many are being created (8)")
    parser.add_argument("--memory", type=int, default=128, help="MiB of each (128)")
    parser.add_argument("--milli-cpus", type=int, default=10, help="CPU thousandths of each (10)")
    parser.add_argument("--dhcp-timeout", type=int, default=120, help="seconds to wait (120)")
    parser.add_argument("--certificates", type=Path, default=Path("~/.ssl"), help="(~/.ssl)")
    options = parser.parse_args()
    if options.count < 1 or options.at_once < 1:
        parser.error("--count and --at-once are 1 at least")
    status = 1
    try:
        status = asyncio.run(run(options))
    except* SmallStackError as group:
        for error in group.exceptions:
            print(f"fifty_vms: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())
