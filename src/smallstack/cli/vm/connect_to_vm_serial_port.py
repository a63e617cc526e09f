"""``vm-control connect-to-vm-serial-port``: the VM's serial console on this terminal."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run
from smallstack.srpc.connection import Connection

DETACH = b"\x1d"  # Ctrl-], as telnet has it: no shell and no editor needs it


@click.command("connect-to-vm-serial-port")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.option("--port", type=click.IntRange(0, 0), default=0, show_default=True)
@click.pass_obj
def command(target: Target, ip_address: str, port: int) -> None:
    """Connect this terminal to the VM's serial console; Ctrl-] detaches."""

    async def work() -> None:
        async with (
            await connector(target)() as client,
            client.connect_serial(ip_address, port) as connection,
        ):
            if sys.stdin.isatty():
                print(f"connected to {ip_address}; detach with Ctrl-]", file=sys.stderr)
            with raw_terminal():
                await relay(connection)

    run(work())


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Standard input byte by byte and without echo, if it is a terminal; restored after."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
        print(file=sys.stderr)


async def relay(connection: Connection) -> None:
    """Copy both ways until the VM closes, the detach key is typed, or both sides have ended."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    stdin = sys.stdin.fileno()

    def readable() -> None:
        data = os.read(stdin, 4096)
        typed.put_nowait(data)
        if not data:
            loop.remove_reader(stdin)

    async def given() -> bytes:
        return await (typed.get() if waited_for else asyncio.to_thread(os.read, stdin, 65536))

    async def outward() -> None:
        while data := await given():
            head, detached, _ = data.partition(DETACH)
            connection.write(head)
            await connection.flush()
            if detached:
                return
        if not sys.stdin.isatty():
            await inward_done.wait()  # input from a pipe ended: show what the VM still says

    async def inward() -> None:
        while data := await connection.read_some(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        inward_done.set()

    inward_done = asyncio.Event()
    try:
        loop.add_reader(stdin, readable)
        waited_for = True
    except PermissionError:  # a file, or /dev/null: always readable, which epoll refuses to tell
        waited_for = False
    tasks = [asyncio.create_task(outward()), asyncio.create_task(inward())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        loop.remove_reader(stdin)
        for task in tasks:
            task.cancel()
