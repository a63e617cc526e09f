"""``./dev bench rpc``: calls per second of one agent, beside a bare TLS echo in the same run.

The agent is the shipped daemon with 100 VMs in its registry (made, not started). It has one core
to itself, the load has the other: a client in C (`rpc_load.c`), so that the figure is the server's.
A call is two round trips, as every client of this protocol makes them: the method line is answered
before the request is sent. So the limit, calls of a server that does nothing, is half of what the
echo of the same run reaches.

After that the weight of connections that do nothing: 10,000 of them with TLS, what the agent grew
by, and what a create (connect to DHCP ACK) takes meanwhile, beside one alone.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.results import BenchError, finish, median, spread
from smallstack.cli.demo_inside import IMAGE, add_image, create_process, run_tool
from smallstack.client.hypervisor import HypervisorClient
from smallstack.control.namespace import become_init, inside, prepare, run_in_namespaces
from smallstack.control.sandbox import HYPERVISOR, Sandbox
from smallstack.daemon.run import raise_file_limit
from smallstack.proto.enums import State
from smallstack.proto.hypervisor.create import CreateVmRequest
from smallstack.proto.hypervisor.info import (
    GetVmInfoRequest,
    GetVmInfoResponse,
    ListVMsRequest,
    ListVMsResponse,
)
from smallstack.proto.vm import VmInfo
from smallstack.settings import cache_directory
from smallstack.srpc import framing, gob
from smallstack.srpc.json_coder import from_json, to_json
from tests.proto import reference_gob

VMS: Final = 100
CROWD: Final = 32
"""Connections of the headline figure."""
IDLE: Final = 10_000
SOURCE: Final = Path(__file__).with_name("rpc_load.c")
_MIB: Final = 1 << 20
_SERVER_CPU, _LOAD_CPU = 0, 1


class Load(NamedTuple):
    """One run of the load: calls per second, and microseconds of a call.

    ``cpu_us`` is the server's processor time, all threads: steadier than the others on a machine
    that is not idle.
    """

    per_s: float
    p50_us: int
    p99_us: int
    cpu_us: float


class _Case(NamedTuple):
    """What is called: a name, the endpoint, how many connections, method, request, its reply."""

    name: str
    endpoint: framing.Endpoint
    connections: int
    method: str
    request: Any
    response: type[Any]


def run(
    seconds: float, turns: int, creates: int, idle: int, json_file: Path | None, only: str = ""
) -> int:
    """Run the benchmark in namespaces of its own; the exit status.

    ``seconds`` is one run of the load, each case has ``turns`` of them; ``creates`` are measured
    without and with ``idle`` connections. ``only`` leaves out the cases whose name lacks it.
    """
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchError(detail="the server and its load need a processor each")
    if not inside():
        if os.geteuid() != 0:
            raise BenchError(detail="namespaces, a bridge and taps need root")
        return run_in_namespaces([sys.executable, "-m", "bench", *sys.argv[1:]])
    become_init()
    prepare()
    raise_file_limit()
    directory = cache_directory() / f"bench-{os.getpid()}-{time.time_ns():x}"
    directory.mkdir(parents=True)
    try:
        asyncio.run(_run(directory, seconds, turns, creates, idle, json_file, only))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


async def _run(
    directory: Path,
    seconds: float,
    turns: int,
    creates: int,
    idle: int,
    json_file: Path | None,
    only: str,
) -> None:
    bench = _Bench(directory, seconds)
    await asyncio.to_thread(compile_load, directory / "rpc_load")
    headline: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    async with bench.agents():
        await bench.fill()
        found = await bench.rates(turns, only)
        for name, loads in found.items():
            samples[name] = [load._asdict() for load in loads]
        if not only:
            headline |= _headline(found) | _codec(bench.info)
            headline |= await bench.idle(creates, idle, samples)
    finish("rpc", headline, samples, json_file)


def compile_load(program: Path) -> None:
    """Make the load's program. Raises BenchError."""
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion"]
    command += ["-o", str(program), str(SOURCE), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(detail=f"{SOURCE.name} does not compile: {done.stderr[-500:]}")


class _Bench:
    """The sandbox, the load's program, and what was measured with them."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds
        self._sandbox = Sandbox(directory, directory / "logs")
        self._program = directory / "rpc_load"
        self._certificate = self._sandbox.certificates / "cert.pem"
        self._key = self._sandbox.certificates / "key.pem"
        self.info = VmInfo()
        self._addresses: list[str] = []

    @contextlib.asynccontextmanager
    async def agents(self) -> AsyncIterator[None]:
        """Image server and Hypervisor while they are needed.

        Lists are for everybody, so that the same agent answers in plain text; the load is one
        user's, so there is no limit per user. It starts with every
        processor: those it finds are what it hands out.
        """
        try:
            await self._sandbox.start(
                addresses=VMS + 8,
                extra=["--allow-unauthenticated-reads", "--calls-per-second", "0"],
            )
            await add_image(self._sandbox, IMAGE, Path(os.environ["SMALLSTACK_APPLIANCE"]) / "root")
            yield
        finally:
            await self._sandbox.stop()

    def _pid(self) -> int:
        return self._sandbox.process_id("hypervisor")

    async def fill(self) -> None:
        """100 VMs in the registry, of 10 milliCPUs and 128 MiB, never started."""
        info = VmInfo(image_name=IMAGE, memory_in_mib=128, milli_cpus=10, tags={"purpose": "bench"})
        begun = time.perf_counter()
        async with await self._sandbox.hypervisor() as client:
            for number in range(VMS):
                info.hostname = f"rpc-{number}"
                self._addresses.append(await _make(client, info))
            self.info = await client.get_vm_info(self._addresses[0])
        if self.info.state is not State.STOPPED:
            raise BenchError(detail=f"the VMs are {self.info.state.text}, not stopped")
        print(f"{VMS} VMs registered in {time.perf_counter() - begun:.1f} s", flush=True)

    async def rates(self, turns: int, only: str) -> dict[str, list[Load]]:
        """Every case, in turns with the echo; prints a table."""
        os.sched_setaffinity(0, {_LOAD_CPU})
        _pin(self._pid(), {_SERVER_CPU})
        found: dict[str, list[Load]] = {}
        cases = [case for case in self._cases() if only in case.name]
        async with self._echo() as (pid, port):
            for _ in range(turns):
                for name, count in (("echo, 32", CROWD), ("echo, 1", 1)):
                    found.setdefault(name, []).append(await self._run_echo(pid, port, count))
                for case in cases:
                    found.setdefault(case.name, []).append(await self._run_case(case))
        for name, loads in found.items():
            print(row(name, loads))
        return found

    def _cases(self) -> list[_Case]:
        info = GetVmInfoRequest(ip_address=self._addresses[0])
        listing = ListVMsRequest(sort=True)
        tls, json_ = framing.TLS_GOB, framing.TLS_JSON
        method = "Hypervisor.GetVmInfo"
        return [
            _Case("GetVmInfo, TLS, 32", tls, CROWD, method, info, GetVmInfoResponse),
            _Case("GetVmInfo, TLS, 1", tls, 1, method, info, GetVmInfoResponse),
            _Case("GetVmInfo, TLS JSON, 32", json_, CROWD, method, info, GetVmInfoResponse),
            _Case(
                "ListVMs (100), TLS, 32", tls, CROWD, "Hypervisor.ListVMs", listing, ListVMsResponse
            ),
            _Case(
                "GetVmInfo, plain, 32",
                framing.PLAIN_GOB,
                CROWD,
                method,
                info,
                GetVmInfoResponse,
            ),
        ]

    async def _run_case(self, case: _Case) -> Load:
        request = self._directory / "request"
        coder = "json" if case.endpoint.json else "gob"
        if case.endpoint.json:
            request.write_bytes(to_json(case.request) + b"\n")
        else:
            request.write_bytes(gob.Encoder().encode(case.request))
        words = [case.endpoint.path, *self._keys(case.endpoint.tls), case.method, str(request)]
        port = int(HYPERVISOR.rpartition(":")[2])
        load, reply = await self._load(self._pid(), "call", port, case.connections, [*words, coder])
        self._check(case, reply)
        return load

    def _check(self, case: _Case, reply: bytes) -> None:
        """The reply that all the others were equal to must be the right one."""
        if case.endpoint.json:
            value: Any = from_json(reply[1:], case.response)
        else:
            decoder = gob.Decoder()
            decoder.feed(reply[1:])
            value = decoder.decode(case.response)
        if case.response is GetVmInfoResponse:
            right = value.vm_info == self.info
        else:
            right = sorted(value.ip_addresses) == sorted(self._addresses)
        if not right:
            raise BenchError(detail=f"{case.name}: the reply is wrong: {value}")

    @contextlib.asynccontextmanager
    async def _echo(self) -> AsyncIterator[tuple[int, int]]:
        keys = self._directory / "pki" / "hypervisor"
        echo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.tls_echo"),
            *(str(keys / "cert.pem"), str(keys / "key.pem"), str(self._directory / "pki/ca.pem")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert echo.stdin is not None
        assert echo.stdout is not None
        _pin(echo.pid, {_SERVER_CPU})
        try:
            yield echo.pid, int(await echo.stdout.readline())
        finally:
            echo.stdin.close()
            await echo.wait()

    async def _run_echo(self, pid: int, port: int, count: int) -> Load:
        request = self._directory / "request"
        request.write_bytes(bytes(64))
        words = ["-", *self._keys(True), "-", str(request), "echo"]
        return (await self._load(pid, "echo", port, count, words))[0]

    def _keys(self, tls: bool) -> list[str]:
        return [str(self._certificate), str(self._key)] if tls else ["-", "-"]

    async def _load(
        self, pid: int, kind: str, port: int, count: int, words: list[str]
    ) -> tuple[Load, bytes]:
        """Run the load against the server that is process ``pid``; also the first reply."""
        before = _cpu_ns(pid)
        process = await asyncio.create_subprocess_exec(
            *(str(self._program), kind, str(port), str(count), str(self._seconds), *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode:
            raise BenchError(detail=err.decode().strip())
        first, second = out.decode().split("\n")[:2]
        record = json.loads(first)
        calls = record["calls"]
        load = Load(
            round(calls / record["seconds"], 1),
            record["p50_us"],
            record["p99_us"],
            round((_cpu_ns(pid) - before) / 1e3 / calls, 2),
        )
        return load, bytes.fromhex(second)

    async def idle(self, creates: int, count: int, samples: dict[str, Any]) -> dict[str, Any]:
        """What idle connections weigh, in all and on a create beside them."""
        _pin(self._pid(), {_SERVER_CPU, _LOAD_CPU})
        os.sched_setaffinity(0, {_SERVER_CPU, _LOAD_CPU})
        await self._creates(1)  # the first fetches and writes what the others find
        alone = await self._creates(creates - creates // 2)
        empty = _rss(self._pid())
        begun = time.perf_counter()
        words = [framing.TLS_GOB.path, *self._keys(True), "-", "-", "-"]
        port = HYPERVISOR.rpartition(":")[2]
        crowd = await asyncio.create_subprocess_exec(
            *(str(self._program), "idle", port, str(count), "0", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        assert crowd.stderr is not None
        if await crowd.stdout.readline() != b"ready\n":
            raise BenchError(detail=(await crowd.stderr.read()).decode().strip())
        took = time.perf_counter() - begun
        full = _rss(self._pid())
        beside = await self._creates(creates)
        if (held := _sockets(self._pid())) < count:
            raise BenchError(detail=f"only {held} of {count} connections were held")
        crowd.stdin.close()
        await crowd.wait()
        alone += await self._creates(creates // 2)  # before and after: machines drift
        print(f"  {count} idle TLS connections, opened in {took:.1f} s")
        print(f"    the agent's memory           {empty:.1f} MiB, with them {full:.1f} MiB")
        print(f"    a create alone               {spread(alone)}")
        print(f"    a create beside them         {spread(beside)}")
        samples["create_alone_s"], samples["create_beside_s"] = alone, beside
        return {
            "idle_connections": count,
            "idle_mb": round(full * _MIB / 1e6, 1),
            "idle_kb_each": round((full - empty) * _MIB / 1e3 / count, 1),
            "create_ratio": round(median(beside) / median(alone), 3),
        }

    async def _creates(self, count: int) -> list[float]:
        """Seconds from connect to DHCP ACK of so many VMs, one after the other."""
        found = []
        for number in range(count):
            created, _ = await create_process(self._sandbox, f"idle-{number}", quiet=True)
            await run_tool(self._sandbox, "destroy-vm", created.ip)
            found.append(created.seconds_to_ack)
        return found


async def _make(client: HypervisorClient, info: VmInfo) -> str:
    request = CreateVmRequest(do_not_start=True, minimum_free_bytes=16 * _MIB, vm_info=info)
    ip = ""
    async for reply in client.create_vm(request):
        ip = reply.ip_address or ip
    await client.acknowledge_vm(ip)
    return ip


def median_run(loads: list[Load]) -> Load:
    """The run whose rate is the median, of an even number the slower one."""
    return sorted(loads)[(len(loads) - 1) // 2]


def row(name: str, loads: list[Load]) -> str:
    """A case's line: rates of all runs, times of a call of the median one, least processor time."""
    rates = spread([load.per_s for load in loads], 1, "/s")
    middle = median_run(loads)
    return (
        f"  {name:24} {rates:38} p50 {middle.p50_us:5} µs  p99 {middle.p99_us:5} µs"
        f"  server {min(load.cpu_us for load in loads):6.1f} µs of CPU"
    )


def _headline(found: dict[str, list[Load]]) -> dict[str, Any]:
    def rate(name: str) -> float:
        return median([load.per_s for load in found[name]], 0)

    crowd, one = rate("GetVmInfo, TLS, 32"), rate("GetVmInfo, TLS, 1")
    echo = rate("echo, 32")
    return {
        "get_vm_info_per_s": crowd,
        "one_tls_per_s": one,
        "plain_per_s": rate("GetVmInfo, plain, 32"),
        "json_per_s": rate("GetVmInfo, TLS JSON, 32"),
        "list_vms_per_s": rate("ListVMs (100), TLS, 32"),
        "p50_us": median_run(found["GetVmInfo, TLS, 32"]).p50_us,
        "p99_us": median_run(found["GetVmInfo, TLS, 32"]).p99_us,
        "cpu_us": min(load.cpu_us for load in found["GetVmInfo, TLS, 32"]),
        "echo_cpu_us": min(load.cpu_us for load in found["echo, 32"]),
        "echo_per_s": echo,
        "one_echo_per_s": rate("echo, 1"),
        # A call is two round trips. Theirs over ours: smaller is better.
        "ratio_echo": round(echo / 2 / crowd, 3),
        "ratio_one_echo": round(rate("echo, 1") / 2 / one, 3),
    }


def _codec(info: VmInfo) -> dict[str, Any]:
    """One GetVmInfo's worth of gob, beside the slow reference of the tests."""
    request, response = GetVmInfoRequest(ip_address="198.51.100.2"), GetVmInfoResponse(vm_info=info)
    data = gob.Encoder().encode(request)
    if reference_gob.encode(response) != gob.Encoder().encode(response):
        raise BenchError(detail="the two codecs do not agree")

    def fast() -> None:
        decoder = gob.Decoder()
        decoder.feed(data)
        decoder.decode(GetVmInfoRequest)
        gob.Encoder().encode(response)

    def slow() -> None:
        reference_gob.ReferenceDecoder(data).decode(GetVmInfoRequest)
        reference_gob.encode(response)

    ours, theirs = _seconds(fast, 20_000), _seconds(slow, 200)
    print(
        f"  gob of one GetVmInfo     {ours * 1e6:.1f} µs of CPU, "
        f"the reference {theirs * 1e6:.0f} µs"
    )
    return {"gob_us": round(ours * 1e6, 2), "gob_speedup": round(theirs / ours, 1)}


def _seconds(work: Callable[[], None], count: int) -> float:
    """The best of five rounds, per call, in CPU time."""
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        for _ in range(count // 5):
            work()
        best = min(best, (time.process_time() - begun) / (count // 5))
    return best


def _pin(pid: int, cpus: set[int]) -> None:
    """Every thread of a process, and those it will make."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def _cpu_ns(pid: int) -> int:
    """Processor time of a process's threads."""
    return sum(
        int((thread / "schedstat").read_text().split()[0])
        for thread in Path(f"/proc/{pid}/task").iterdir()
    )


def _rss(pid: int) -> float:
    """MiB of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) / 1024


def _sockets(pid: int) -> int:
    return sum(
        1
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if str(entry.readlink()).startswith("socket:")
    )
