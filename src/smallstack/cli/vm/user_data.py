"""``vm-control``: the user data of a VM, and how it was created."""

import sys
from pathlib import Path

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import IPv4, Target

_IP = click.argument("ip_address", metavar="IP", type=IPv4())
_PLACE = click.argument("place", metavar="[FILE]", type=click.Path(path_type=Path), required=False)


def _put(data: bytes, place: Path | None) -> None:
    """Into a file, root's and its owner's alone, or on standard output."""
    if place is None:
        sys.stdout.buffer.write(data)
        return
    place.touch(mode=0o600)
    place.write_bytes(data)


@click.command("get-vm-user-data")
@_IP
@_PLACE
@click.pass_obj
def get(target: Target, ip_address: str, place: Path | None) -> None:
    """Write a VM's user data into a file, or print them."""
    data = ask(target, lambda client: client.get_vm_user_data(ip_address))
    try:
        _put(data, place)
    except OSError as error:
        raise click.ClickException(f"cannot write {place}: {error.strerror}") from error


@click.command("replace-vm-user-data")
@_IP
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.pass_obj
def replace(target: Target, ip_address: str, source: Path) -> None:
    """Give a VM the content of a file as its user data."""
    ask(target, lambda client: client.replace_vm_user_data(ip_address, source))


@click.command("restore-vm-user-data")
@_IP
@click.pass_obj
def restore(target: Target, ip_address: str) -> None:
    """Go back to the user data before the latest change."""
    ask(target, lambda client: client.restore_vm_user_data(ip_address))


@click.command("discard-vm-old-user-data")
@_IP
@click.pass_obj
def discard_old(target: Target, ip_address: str) -> None:
    """Forget the user data before the latest change."""
    ask(target, lambda client: client.discard_vm_old_user_data(ip_address))


@click.command("get-vm-create-request")
@_IP
@click.pass_obj
def create_request(target: Target, ip_address: str) -> None:
    """Print what a VM's creator asked for, as JSON."""
    from smallstack.srpc.json_coder import to_json

    request = ask(target, lambda client: client.get_vm_create_request(ip_address))
    click.echo(to_json(request, indent=4))
