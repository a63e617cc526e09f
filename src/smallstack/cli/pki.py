"""``smallstack pki``: a certificate authority of one's own.

::

    smallstack pki make-ca
    smallstack pki issue hv1 --server --host hv1.example --method 'ImageServer.*' \\
                         --method ObjectServer.GetObjects --out /etc/smallstack/hypervisor
    smallstack pki issue alice --group dev --method 'Hypervisor.*'
    smallstack pki list
    smallstack pki renew --within 30 /etc/smallstack/hypervisor ~/.ssl
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from smallstack.cli.options import fail
from smallstack.cli.output import emit_rows, format_option
from smallstack.identity import pki as authority
from smallstack.identity.certificate import load
from smallstack.identity.credentials import find_pairs
from smallstack.identity.decision import match
from smallstack.identity.errors import (
    CertificateExistsError,
    ForeignCertificateError,
    NoPairError,
)
from smallstack.proto.methods import METHODS
from smallstack.telemetry.errors import SmallStackError, describe

F = TypeVar("F", bound=Callable[..., Any])
DAYS = click.IntRange(1, 36500)
COLUMNS = ("name", "kind", "groups", "methods", "until", "left_days")


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
    authority.make_ca(directory, name, identity_only=identity, days=days)
    print(directory / ("identity-ca.pem" if identity else "ca.pem"))


@pki.command("renew-ca")
@click.option("--identity", is_flag=True, help="the one that vouches for identities only")
@click.option("--days", type=DAYS, default=authority.AUTHORITY_DAYS, show_default=True)
@click.pass_obj
@_told
def renew_ca(directory: Path, identity: bool, days: int) -> None:
    """Make a later certificate of the authority, by the same key.

    What it has issued stays good. Daemons need the new file; those it is copied to have it in use
    at the next connection.
    """
    authority.renew_ca(directory, identity_only=identity, days=days)
    print(directory / ("identity-ca.pem" if identity else "ca.pem"))


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
@click.option("--replace", is_flag=True, help="make it anew where there is one already")
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
    if options["identity"] and options["methods"]:
        raise click.UsageError("methods of a certificate by the --identity authority do not count")
    place = (out or Path("~/.ssl")).expanduser()
    for suffix in ("cert", "key"):
        path = place / (f"{suffix}.pem" if server else f"{name}.{suffix}")
        if path.exists() and not options["replace"]:
            raise CertificateExistsError(place=path)
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
    for method in options["methods"]:
        if not any(match(method, known) for known in METHODS):
            print(f"no method that is known here matches {method!r}", file=sys.stderr)
    if server:
        made.write_server(out, made_by)
        print(out)
    else:
        written, _ = made.write(place, name)
        print(written)


@pki.command("renew")
@click.argument("places", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--new-key", is_flag=True, help="with a new key: the former may be known to others")
@click.option("--days", type=DAYS, help="how long it lasts; default: as long as before")
@click.option(
    "--within", type=click.IntRange(0), help="only what ends within so many days; else it stays"
)
@click.pass_obj
@_told
def renew(
    directory: Path, places: tuple[Path, ...], new_key: bool, days: int | None, within: int | None
) -> None:
    """Replace certificates by later ones: same name, groups and methods, same key.

    PLACES are certificates (cert.pem, NAME.cert) or directories of them, where those of other
    authorities are passed over. A running daemon has its own in use at the next connection.
    """
    for place, named in _certificates(places):
        if within is not None:
            left = load(place).not_after - time.time()
            if left > within * 86400:
                continue
        try:
            made = authority.renew(directory, place, days=days, new_key=new_key)
        except ForeignCertificateError as error:
            if named:
                raise
            print(error, file=sys.stderr)
            continue
        print(f"{place}\t{_day(made.not_after)}")


def _certificates(places: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """The certificates at the places, and whether each was named itself."""
    for place in places:
        if not place.is_dir():
            yield place, True
            continue
        pairs = find_pairs(place)
        if not pairs:
            raise NoPairError(directory=place)
        for pair in pairs:
            yield pair.certificate, False


@pki.command("list")
@format_option()
@click.pass_obj
@_told
def list_issued(directory: Path, output: str) -> None:
    """List the authorities and the certificates given out, with the day each ends."""
    now = time.time()
    rows = [
        {
            "name": one.common_name,
            "kind": kind,
            "groups": sorted(one.groups),
            "methods": sorted(one.methods),
            "until": _day(one.not_after),
            "left_days": int((one.not_after - now) // 86400),
        }
        for one, kind in authority.listed(directory)
    ]
    emit_rows(rows, output, COLUMNS)
    if not rows:
        print(f"nothing was issued in {directory}", file=sys.stderr)


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
