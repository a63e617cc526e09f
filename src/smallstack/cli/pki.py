"""``smallstack pki``: a certificate authority of one's own.

::

    smallstack pki make-ca
    smallstack pki issue hv1 --server --host hv1.example --method 'ImageServer.*' \\
                         --method ObjectServer.GetObjects --out /etc/smallstack/hypervisor
    smallstack pki issue alice --group dev --method 'Hypervisor.*'
    smallstack pki list
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from smallstack.cli.options import fail
from smallstack.cli.output import emit_rows, format_option
from smallstack.identity import pki as authority
from smallstack.telemetry.errors import SmallStackError, describe

F = TypeVar("F", bound=Callable[..., Any])
DAYS = click.IntRange(1, 36500)
COLUMNS = ("name", "groups", "methods", "until", "left_days")


def default_directory() -> str:
    """Root's authority is the machine's, anybody else's their own."""
    return "/etc/smallstack/pki" if os.geteuid() == 0 else "~/.config/smallstack/pki"


def _told(command: F) -> F:
    """Failures as one line."""

    @wraps(command)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SmallStackError as error:
            fail(str(error))
        except OSError as error:
            fail(describe(error))

    return told  # type: ignore[return-value]


@click.group()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_directory,
    envvar="SMALLSTACK_PKI",
    show_default="/etc/smallstack/pki or ~/.config/smallstack/pki",
    help="where the authority lives",
)
@click.pass_context
def pki(context: click.Context, directory: Path) -> None:
    """Make certificates: an authority, and with it users' and daemons'."""
    context.obj = directory.expanduser()


@pki.command("make-ca")
@click.option("--name", default="", help="what the authority is called")
@click.option(
    "--identity", is_flag=True, help="a second one that vouches for users and groups, not methods"
)
@click.option("--days", type=DAYS, default=authority.AUTHORITY_DAYS, show_default=True)
@click.pass_obj
@_told
def make_ca(directory: Path, name: str, identity: bool, days: int) -> None:
    """Make the authority: ca.pem, which daemons trust, and ca.key, to be kept."""
    made = authority.make_ca(directory, name, identity_only=identity, days=days)
    stem = "identity-ca" if identity else "ca"
    print(made.directory / f"{stem}.pem")


@pki.command("issue")
@click.argument("name")
@click.option("--group", "groups", multiple=True, help="a group of the user's; repeatable")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="SERVICE.METHOD",
    help="a method it may call with powers, such as 'Hypervisor.*' or '*.*'; repeatable",
)
@click.option("--server", is_flag=True, help="for a daemon; give methods if it calls others")
@click.option("--host", "names", multiple=True, help="a daemon's host name or address; repeatable")
@click.option("--identity", is_flag=True, help="signed by the authority for identities only")
@click.option("--days", type=DAYS, default=authority.DEFAULT_DAYS, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="where to write it: ~/.ssl for users; needed for daemons",
)
@click.pass_obj
@_told
def issue(directory: Path, /, **options: Any) -> None:
    """Make a certificate and key for a user (NAME.cert, NAME.key) or a daemon.

    A daemon's directory gets cert.pem, key.pem and the authority's ca.pem.
    """
    name, out, server = options["name"], options["out"], options["server"]
    if server and out is None:
        raise click.UsageError("a daemon's certificate needs --out DIRECTORY")
    if options["names"] and not server:
        raise click.UsageError("--host is for --server")
    if "/" in name:
        raise click.UsageError("a name has no slash in it")
    made_by = authority.Authority.load(directory, options["identity"])
    made = authority.issue(
        made_by,
        name,
        groups=options["groups"],
        methods=options["methods"],
        server=server,
        names=options["names"],
        days=options["days"],
    )
    if server:
        made.write_server(out, made_by)
        print(out)
    else:
        place, _ = made.write((out or Path("~/.ssl")).expanduser(), name)
        print(place)


@pki.command("list")
@format_option()
@click.pass_obj
@_told
def list_issued(directory: Path, output: str) -> None:
    """List the certificates given out."""
    now = time.time()
    rows = [
        {
            "name": one.common_name,
            "groups": sorted(one.groups),
            "methods": sorted(one.methods),
            "until": time.strftime("%Y-%m-%d", time.gmtime(one.not_after)),
            "left_days": int((one.not_after - now) // 86400),
        }
        for one in authority.issued(directory)
    ]
    emit_rows(rows, output, COLUMNS)
    if not rows:
        print(f"nothing was issued in {directory}", file=sys.stderr)
