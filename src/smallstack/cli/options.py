"""What the commands of every tool share: their target, kinds of value, and the one way to run.

A failure is one line on standard error and an exit code: 1 for what the daemon refused or the
network did, 2 for a wrong command line, 130 for Ctrl-C.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec

from smallstack.telemetry.errors import SmallStackError, describe

if TYPE_CHECKING:
    from smallstack.identity.credentials import ClientCredentials

T = TypeVar("T")
LIMIT = 2**63
"""What a duration in ns and a size in bytes stay below."""


class Target(msgspec.Struct, frozen=True):
    """Which daemon to talk to (``host:port``), and as whom."""

    address: str
    cert_directory: Path
    plain: bool

    def credentials(self) -> "ClientCredentials | None":
        """None in plain mode; raises NoCredentialsError and its like."""
        from smallstack.identity.credentials import ClientCredentials

        return None if self.plain else ClientCredentials.load(self.cert_directory)


cert_directory_option = click.option(
    "--cert-directory",
    type=click.Path(path_type=Path),
    default=Path("~/.ssl"),
    envvar="SMALLSTACK_CERT_DIRECTORY",
    show_default=True,
    help="directory with the client's key and certificate files",
)
plain_option = click.option(
    "--plain",
    is_flag=True,
    envvar="SMALLSTACK_PLAIN",
    help="no TLS: only for a daemon that was started with --insecure",
)


def with_port(address: str, port: int) -> str:
    """``address`` as it is when it names a port, else with ``port``; IPv6 gets its brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        return f"[{address}]:{port}"
    return address if address.rpartition(":")[2].isdigit() else f"{address}:{port}"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one command's coroutine; turns failures into one line and an exit code."""
    return guard(lambda: asyncio.run(work))


def guard(work: Callable[[], T]) -> T:
    """Do one command's work; turns failures into one line and an exit code."""
    try:
        return work()
    except SmallStackError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        fail("the reader of this command's output went away")
    except OSError as error:
        fail(describe(error))


def fail(message: str, code: int = 1) -> NoReturn:
    """One line on standard error, then exit with ``code``."""
    program = Path(sys.argv[0]).stem.replace("_", "-")
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def parse_duration(text: str) -> int:
    """Nanoseconds of ``500ms``, ``10s``, ``1m``, ``2h`` or a plain number of seconds.

    Raises click.BadParameter when the text is none of these, negative or over 292 years.
    """
    units = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
    for suffix in ("ms", "s", "m", "h", ""):
        number = text.removesuffix(suffix) if suffix else text
        if text.endswith(suffix):
            try:
                nanoseconds = int(float(number) * units.get(suffix, 10**9))
            except (ValueError, OverflowError):
                continue
            if 0 <= nanoseconds < LIMIT:
                return nanoseconds
    raise click.BadParameter(f"{text!r} is no duration: write 500ms, 10s, 1m or 2h")


def parse_mib(text: str) -> int:
    """MiB of ``128``, ``128M``, ``128MiB``, ``1G`` or ``1GiB``; click.BadParameter otherwise.

    The least is 1 MiB.
    """
    mib = parse_bytes(text, 2**20) // 2**20
    if mib < 1:
        raise click.BadParameter(f"{text!r} is less than 1 MiB: write 128M, 1G or a number")
    return mib


def parse_bytes(text: str, unit: int = 1) -> int:
    """Bytes of a number with an optional K, M, G or T (powers of 1024); else ``unit`` each.

    Raises click.BadParameter when the text is none, negative or 8 EiB and more.
    """
    stripped = text.strip().lower().removesuffix("ib").removesuffix("b")
    power = {"k": 10, "m": 20, "g": 30, "t": 40}
    scale = 2 ** power[stripped[-1]] if stripped and stripped[-1] in power else unit
    try:
        size = int(float(stripped.rstrip("kmgt")) * scale)
    except (ValueError, OverflowError):
        size = -1
    if not 0 <= size < LIMIT:
        raise click.BadParameter(f"{text!r} is no size: write 128M, 1G or a number")
    return size


class Duration(click.ParamType[int]):
    """A duration on the command line; the value is nanoseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """``value`` in nanoseconds; an int passes as it is."""
        return value if isinstance(value, int) else parse_duration(str(value))


class Mebibytes(click.ParamType[int]):
    """An amount of memory on the command line; the value is MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """``value`` in MiB; an int passes as it is."""
        return value if isinstance(value, int) else parse_mib(str(value))


class Bytes(click.ParamType[int]):
    """An amount of storage on the command line; the value is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """``value`` in bytes; an int passes as it is."""
        return value if isinstance(value, int) else parse_bytes(str(value))


class IPv4(click.ParamType[str]):
    """An IPv4 address on the command line."""

    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """``value`` itself, if it is four numbers from 0 to 255 with dots between."""
        try:
            socket.inet_pton(socket.AF_INET, value)
        except OSError:
            self.fail(f"{value!r} is no IPv4 address", param, ctx)
        return str(value)
