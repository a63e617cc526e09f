"""``smallstack log``: the log of a daemon from afar, and how much it tells.

::

    smallstack log watch hv1:6976 --level 0 --include 'network:|machine:'
    smallstack log set-debug-level hv1:6976 0
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from smallstack.cli.options import Target, cert_directory_option, plain_option, run
from smallstack.client.logger import LoggerClient

T = TypeVar("T")
LEVEL = click.IntRange(-1, 255)


@click.group("log")
@cert_directory_option
@plain_option
@click.pass_context
def group(ctx: click.Context, cert_directory: Path, plain: bool) -> None:
    """The log of any daemon, named by host:port; needs rights for Logger.* there."""
    ctx.obj = (cert_directory.expanduser(), plain)


@group.command("watch")
@click.argument("address")
@click.option("--level", type=LEVEL, default=-1, show_default=True, help="debug lines up to this")
@click.option("--include", default="", help="only lines that match this expression")
@click.option("--exclude", default="", help="but none that match this one")
@click.pass_obj
def watch(obj: tuple[Path, bool], address: str, level: int, include: str, exclude: str) -> None:
    """Print the log's lines from now on, until Ctrl-C."""

    async def work(client: LoggerClient) -> None:
        async for line in client.watch(level, include, exclude):
            print(line, flush=True)

    _run(obj, address, work)


@group.command("set-debug-level", context_settings={"ignore_unknown_options": True})  # -1
@click.argument("address")
@click.argument("level", type=LEVEL)
@click.pass_obj
def set_debug_level(obj: tuple[Path, bool], address: str, level: int) -> None:
    """Let the daemon's own log tell more: 0 and above; -1 for what it told at its start."""
    _run(obj, address, lambda client: client.set_debug_level(level))


@group.command("print")
@click.argument("address")
@click.argument("words", nargs=-1, required=True)
@click.pass_obj
def print_line(obj: tuple[Path, bool], address: str, words: tuple[str, ...]) -> None:
    """Write a line into the log."""
    _run(obj, address, lambda client: client.print(words))


@group.command("debug")
@click.argument("address")
@click.argument("level", type=click.IntRange(0, 255))
@click.argument("words", nargs=-1, required=True)
@click.pass_obj
def debug(obj: tuple[Path, bool], address: str, level: int, words: tuple[str, ...]) -> None:
    """Write a line that shows from a debug level on."""
    _run(obj, address, lambda client: client.debug(level, words))


@group.command("get-stack-trace")
@click.argument("address")
@click.pass_obj
def get_stack_trace(obj: tuple[Path, bool], address: str) -> None:
    """Print where everything is that runs or waits in the daemon."""
    print(_run(obj, address, lambda client: client.get_stack_trace()), end="")


def _run(obj: tuple[Path, bool], address: str, work: Callable[[LoggerClient], Awaitable[T]]) -> T:
    target = Target(address, *obj)

    async def connected() -> T:
        async with await LoggerClient.connect(target.address, target.credentials()) as client:
            return await work(client)

    return run(connected())
