"""A tool that talks to one daemon: options that say which and as whom, commands, its end."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from smallstack.cli.lazy import LazyGroup, Table
from smallstack.cli.options import (
    Target,
    cert_directory_option,
    fail,
    plain_option,
    with_port,
)


class Daemon(msgspec.Struct, frozen=True):
    """What a tool talks to: its option, its name in a sentence, its port, what commands get."""

    option: str
    title: str
    port: int
    target: type[Target] = Target


HYPERVISOR: Final = Daemon("hypervisor", "Hypervisor", 6976)


def tool(name: str, text: str, commands: Table, daemon: Daemon) -> click.Group:
    """The group of a tool; its commands find a `Target` (or what ``daemon`` names) by pass_obj."""

    @click.group(name, cls=LazyGroup, table=commands, help=text)
    @click.version_option(version="0.1.0", prog_name=name)
    @click.option(
        f"--{daemon.option}",
        f"--{daemon.option}-hostname",
        "address",
        default=f"localhost:{daemon.port}",
        envvar=f"SMALLSTACK_{daemon.option.upper().replace('-', '_')}",
        show_default=True,
        help=f"host[:port] of the {daemon.title}",
    )
    @cert_directory_option
    @plain_option
    @click.pass_context
    def group(ctx: click.Context, address: str, cert_directory: Path, plain: bool) -> None:
        ctx.obj = daemon.target(with_port(address, daemon.port), cert_directory.expanduser(), plain)

    return group


def run_tool(group: click.Group) -> NoReturn:
    """Run a tool to its exit code, and leave without taking the interpreter down.

    To free every module costs a create more than to send it; the system frees them for nothing.
    """
    code: object = 0
    try:
        try:
            group(prog_name=group.name)
        except SystemExit as leaving:
            code = leaving.code
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed before we began
                stream.flush()
    except OSError as error:
        with suppress(SystemExit):
            fail(f"cannot write the output: {error.strerror}")
        code = 1
    os._exit(code if isinstance(code, int) else bool(code))
