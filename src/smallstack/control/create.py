"""Creating a VM, seen from the client: create, acknowledge, then what the caller waits for.

All of it is orchestration over public RPCs; the Hypervisor knows nothing of this module.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from smallstack.client.errors import ServiceError
from smallstack.client.hypervisor import HypervisorClient
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.telemetry.errors import SmallStackError
from smallstack.telemetry.timeline import Phase

Connect = Callable[[], Awaitable[HypervisorClient]]
Report = Callable[[str], None]


class CreateError(SmallStackError):
    """creating VM on {address}: {reason}"""


class NoDhcpError(SmallStackError):
    """
    {ip} did not ask for an address within {seconds:g} s; the VM is kept: see its console with
    `vm-control connect-to-vm-serial-port {ip}`, end it with `vm-control destroy-vm {ip}`
    """


class PortClosedError(SmallStackError):
    """port {port} of {ip} did not open within {seconds:g} s; the VM is kept"""


class After(msgspec.Struct, frozen=True):
    """What to wait for once the VM runs: a TCP port (0: none), and metadata requests to show."""

    probe_port: int = 0
    probe_timeout_ns: int = 300 * 10**9
    trace_metadata: bool = False


class Created(msgspec.Struct):
    """A created VM.

    ``connect_started_ns`` is just before the connection was opened, ``acknowledged_ns`` when the
    message that tells the DHCP ACK was in; both of ``time.monotonic_ns``, as the phases of the
    Hypervisor's timeline are. Seconds count from the first of them.
    """

    ip: str = ""
    dhcp_timed_out: bool = False
    connect_started_ns: int = 0
    acknowledged_ns: int = 0
    messages: list[tuple[float, str]] = []
    timeline: list[Phase] = []
    seconds_to_port: float | None = None

    @property
    def seconds_to_ack(self) -> float:
        """From the opening of the connection to the message that tells the DHCP ACK."""
        return (self.acknowledged_ns - self.connect_started_ns) / 1e9


async def create(
    connect: Connect,
    address: str,
    request: CreateVmRequest,
    user_data: bytes,
    after: After,
    report: Report,
    image_file: Path | None = None,
) -> Created:
    """Create one VM and wait as ``after`` says; ``report`` gets a line per event.

    ``image_file`` is sent for its disk.

    Raises CreateError when the Hypervisor refuses, NoDhcpError and PortClosedError when the VM
    stands but did not come up; in those two cases it is acknowledged and kept.
    """
    created = Created()
    report(f"creating VM on {address}")
    async with await connect() as client:
        created.connect_started_ns = client.client.connect_started_ns
        try:
            await _follow(client, request, user_data, created, report, image_file)
        except ServiceError as error:
            raise CreateError(address=address, reason=error.text) from error
        # Unacknowledged, the Hypervisor would destroy it after 15 s.
        await client.acknowledge_vm(created.ip)
        if not request.do_not_start:
            wait_dhcp(created.ip, request.dhcp_timeout, created.dhcp_timed_out, report)
        if after.probe_port or after.trace_metadata:
            await wait_after(connect, created.ip, after, report, client)
            created.seconds_to_port = (time.monotonic_ns() - created.connect_started_ns) / 1e9
    return created


async def _follow(
    client: HypervisorClient,
    request: CreateVmRequest,
    user_data: bytes,
    created: Created,
    report: Report,
    image_file: Path | None,
) -> None:
    """Send the request and note what the Hypervisor says until its last message."""
    sent = _Sending(report)
    async for reply in client.create_vm(request, image_file, user_data, sent):
        now = time.monotonic_ns()
        created.ip = reply.ip_address or created.ip
        if reply.progress_message:
            seconds = (now - created.connect_started_ns) / 1e9
            created.messages.append((seconds, reply.progress_message))
            report(reply.progress_message)
        if reply.final:
            created.acknowledged_ns = now
            created.dhcp_timed_out = reply.dhcp_timed_out
            created.timeline = [
                Phase(p.name, p.start_nanoseconds, p.start_nanoseconds + p.duration_nanoseconds)
                for p in reply.timeline
            ]


class _Sending:
    """Tells how much of an image has been sent, a tenth at a time."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told = 0

    def __call__(self, sent: int, size: int) -> None:
        step = sent * 10 // size
        if step > self._told:
            self._told = step
            self._report(f"sent {sent >> 20} of {size >> 20} MiB of the image")


def wait_dhcp(ip: str, timeout_ns: int, timed_out: bool, report: Report) -> None:
    """Say how the wait for the guest's DHCP ended; NoDhcpError when it ended without."""
    if timed_out:
        raise NoDhcpError(ip=ip, seconds=timeout_ns / 1e9)
    if timeout_ns > 0:
        report("Received DHCP ACK")


async def wait_after(
    connect: Connect, ip: str, after: After, report: Report, client: HypervisorClient
) -> None:
    """Wait for the probed port; meanwhile report the metadata paths the guest asks for."""
    trace = None
    if after.trace_metadata:
        trace = asyncio.create_task(_trace(connect, ip, report))
    try:
        if after.probe_port:
            await _probe(client, ip, after)
            report(f"Port {after.probe_port} is open")
        elif trace:
            await trace
    finally:
        if trace:
            trace.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trace


async def _probe(client: HypervisorClient, ip: str, after: After) -> None:
    if not await client.probe_vm_port(ip, after.probe_port, after.probe_timeout_ns):
        seconds = after.probe_timeout_ns / 1e9
        raise PortClosedError(ip=ip, port=after.probe_port, seconds=seconds)


async def _trace(connect: Connect, ip: str, report: Report) -> None:
    async with await connect() as client:
        async for path in client.trace_vm_metadata(ip):
            report(path)
