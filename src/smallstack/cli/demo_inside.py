"""The demo, inside its namespaces: daemons, one create or many, what the guest says, the page."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from smallstack.cli.breakdown import picture as draw
from smallstack.cli.breakdown import table
from smallstack.cli.demo import NOTED
from smallstack.control.create import Created
from smallstack.control.namespace import become_init, prepare
from smallstack.control.sandbox import Sandbox
from smallstack.srpc.connection import Connection
from smallstack.telemetry.errors import SmallStackError
from smallstack.telemetry.timeline import Phase

IMAGE = "appliance"
MEMORY_MIB = 128
PRIVATE_MIB = 4096
PORT = 80
CONSOLE_BYTES = 1 << 20
PROGRAM_SECONDS = 10
PROGRAM_ENDED = ("smallstack: /run/user-data ended", "smallstack: /run/user-data was ended")
"""What the appliance's init says when the program is over."""
PAGE_BYTES = 1 << 20


class DemoError(SmallStackError):
    """the demo failed: {reason}"""


def run_inside(
    cache: Path, count: int, program: Path | None, picture: Path, status_fd: int | None
) -> int:
    """Run the demo inside its namespaces; its exit status.

    With ``status_fd``, a socket (``--keep``), it writes ``up ADDRESS`` there and, when it has read
    that this was noted, stays until it is killed.
    """
    become_init()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(_demo(cache, count, program, picture, status_fd))
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started is gone", file=sys.stderr)
        return 130
    except (SmallStackError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(f"demo: all logs are in {cache / 'demo' / 'logs'}", file=sys.stderr)
        return 1


async def _demo(
    cache: Path, count: int, program: Path | None, picture: Path, status_fd: int | None
) -> int:
    home = cache / "demo"
    private = home / "run"
    prepare(private, PRIVATE_MIB)
    sandbox = Sandbox(private, home / "logs")
    _say("starting the image server and the hypervisor in a private network namespace")
    try:
        # Control groups are all that a private namespace does not take with it.
        await sandbox.start(addresses=max(16, count + 8), extra=["--cpu-control", "none"])
        await _add_image(sandbox)
        # One create before the one that is shown: it fetches the objects and writes the brick,
        # as the first create of an image does anywhere; the shown one is an ordinary create.
        _say("first create: fetches the image's objects and writes its brick")
        first, _ = await create_process(sandbox, "warm-up", quiet=True)
        await run_tool(sandbox, "destroy-vm", first.ip)
        print()
        created, seconds = await create_process(sandbox, "demo", program=program, quiet=False)
        print(f"\n{table(created, seconds)}\n")
        draw(created, picture)
        _say(f"picture: {picture.absolute()}")
        await show_console(sandbox, created.ip, program is not None)
        if count > 1:
            await _many(sandbox, count - 1)
        sys.stdout.flush()
        await run_tool(sandbox, "probe-vm-port", created.ip, str(PORT), quiet=False)
        print(await _page(created.ip), flush=True)
        if status_fd is not None:
            sys.stdout.flush()
            await _stay(socket.socket(fileno=status_fd), created.ip)
    except SmallStackError as error:
        raise sandbox.failed() or error from None
    finally:
        await sandbox.stop()
    return 0


async def _stay(status: socket.socket, address: str) -> None:
    """Say that it is up, and stay until `down` if somebody has noted it."""
    loop = asyncio.get_running_loop()
    status.setblocking(False)
    with status:
        await loop.sock_sendall(status, f"up {address}\n".encode())
        if not await loop.sock_recv(status, len(NOTED)):
            raise DemoError(reason="the command that started it was ended")
    await loop.create_future()


async def _add_image(sandbox: Sandbox) -> None:
    tree = Path(os.environ["SMALLSTACK_APPLIANCE"]) / "root"
    _say(f"adding the image {IMAGE} from {tree}")
    await add_image(sandbox, IMAGE, tree)


async def add_image(sandbox: Sandbox, name: str, tree: Path) -> None:
    """Add an image through imagetool, as a user would."""
    command = [sys.executable, "-m", "smallstack.cli.imagetool"]
    command += ["--cert-directory", str(sandbox.certificates), "add", name, str(tree)]
    await _checked(command)


async def create_process(
    sandbox: Sandbox,
    hostname: str,
    *,
    program: Path | None = None,
    quiet: bool,
    start: bool = True,
) -> tuple[Created, float]:
    """Create a VM by a ``vm-control create-vm`` process; what it says, exec to exit in seconds."""
    arguments = ["create-vm", "--hostname", hostname, "--image-name", IMAGE]
    arguments += ["--memory", f"{MEMORY_MIB}M", "--milli-cpus", "10", "--min-free-bytes", "16M"]
    arguments += ["--format", "json"]
    if program:
        arguments += ["--user-data", str(program)]
    if not start:
        arguments.append("--do-not-start")
    command = [sys.executable, "-m", "smallstack.cli.vm_control", *sandbox.tool_options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    out = await _checked([*command, *arguments], quiet=quiet)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    created = decode_created(out)
    if not quiet:
        print(created.ip)
        print(f"\nreal {_minutes(seconds)}")
        print(f"user {_minutes(after.ru_utime - before.ru_utime)}")
        print(f"sys {_minutes(after.ru_stime - before.ru_stime)}")
    return created, seconds


def decode_created(out: bytes) -> Created:
    """The record that ``create-vm --format json`` printed."""
    record = msgspec.json.decode(out)
    return Created(
        ip=record["ip_address"],
        dhcp_timed_out=record["dhcp_timed_out"],
        connect_started_ns=record["connect_started_ns"],
        acknowledged_ns=record["acknowledged_ns"],
        messages=[(m["seconds"], m["text"]) for m in record["messages"]],
        timeline=[Phase(p["name"], p["start_ns"], p["end_ns"]) for p in record["timeline"]],
        seconds_to_port=record["seconds_to_port"],
    )


async def show_console(sandbox: Sandbox, ip: str, program: bool) -> None:
    """Print what the guest itself says: that it is ready, who it was told it is, and its program.

    A ``program`` is listened to until it ends, `PROGRAM_SECONDS` at most.
    """
    async with (
        await sandbox.hypervisor() as client,
        client.connect_serial(ip, 0) as connection,
    ):
        lines = _console_lines(connection)
        wanted = f"smallstack: ready ip={ip}"
        async for line in lines:
            if line.startswith(wanted):
                break
        else:
            raise DemoError(reason=f"the guest did not say {wanted!r}")
        print(f"  console | {line}")
        async for line in lines:
            print(f"  console | {line}")
            if line == "smallstack: identity-end":
                break
        else:
            raise DemoError(reason="the guest did not print its identity document")
        if not program:
            return
        print("  console |", flush=True)
        try:
            async with asyncio.timeout(PROGRAM_SECONDS):
                async for line in lines:
                    print(f"  program | {line}", flush=True)
                    if any(words in line for words in PROGRAM_ENDED):  # a prompt may precede
                        break
        except TimeoutError:
            _say(f"the program goes on; its first {PROGRAM_SECONDS} s were listened to")


async def _console_lines(connection: Connection) -> AsyncIterator[str]:
    """The console's lines that are not empty, from its beginning; ends with the guest."""
    seen = b""
    while data := await connection.read_some(65536):
        *whole, seen = (seen + data).split(b"\n")
        if len(seen) > CONSOLE_BYTES:
            raise DemoError(reason=f"a line of over {CONSOLE_BYTES} bytes on the console")
        for line in whole:
            if text := line.decode(errors="replace").strip("\r"):
                yield text


async def _many(sandbox: Sandbox, count: int) -> None:
    start = time.perf_counter()
    names = [f"demo-{n}" for n in range(2, count + 2)]
    made = await asyncio.gather(*(create_process(sandbox, n, quiet=True) for n in names))
    seconds = time.perf_counter() - start
    _say(f"{count} more VMs in {seconds:.2f} s: {' '.join(created.ip for created, _ in made)}")


async def _page(ip: str) -> str:
    """Fetch the page of the guest's web server, from the bridge as a neighbour would."""
    reader, writer = await asyncio.open_connection(ip, PORT)
    with contextlib.closing(writer):
        writer.write(f"GET / HTTP/1.0\r\nHost: {ip}\r\n\r\n".encode())
        reply = b""
        while len(reply) < PAGE_BYTES and (data := await reader.read(65536)):
            reply += data
    head, _, body = reply.partition(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise DemoError(reason=f"http://{ip}/ answered {head.splitlines()[0]!r}")
    lines = body.decode(errors="replace").strip().splitlines()
    return "\n".join([f"http://{ip}/ says:", *(f"  {line}" for line in lines)])


async def run_tool(sandbox: Sandbox, *arguments: str, quiet: bool = True) -> bytes:
    """Run a vm-control command against the sandbox; its standard output. Raises DemoError."""
    command = [sys.executable, "-m", "smallstack.cli.vm_control", *sandbox.tool_options]
    return await _checked([*command, *arguments], quiet=quiet)


async def _checked(command: list[str], *, quiet: bool = True) -> bytes:
    """Run a tool; its standard output. Raises DemoError with its one line when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if quiet else None,
    )
    out, err = await process.communicate()
    if process.returncode:
        last = (err or b"see above").decode(errors="replace").strip().splitlines()[-1:]
        raise DemoError(reason=last[0] if last else f"exit status {process.returncode}")
    return out


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}m{seconds % 60:.3f}s"


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)
