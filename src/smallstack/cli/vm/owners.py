"""``vm-control``: whose a VM is, and who may have it for a while."""

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import Duration, IPv4, Target

_IP = click.argument("ip_address", metavar="IP", type=IPv4())
_NAMES = click.argument("names", metavar="[NAME]...", nargs=-1)


@click.command("become-primary-vm-owner")
@_IP
@click.pass_obj
def become_primary(target: Target, ip_address: str) -> None:
    """Be the first owner of a VM that you may have."""
    ask(target, lambda client: client.become_primary_vm_owner(ip_address))


@click.command("change-vm-owner-users")
@_IP
@_NAMES
@click.pass_obj
def users(target: Target, ip_address: str, names: tuple[str, ...]) -> None:
    """Have these users own a VM beside its first owner, and no others."""
    ask(target, lambda client: client.change_vm_owner_users(ip_address, names))


@click.command("change-vm-owner-groups")
@_IP
@_NAMES
@click.pass_obj
def groups(target: Target, ip_address: str, names: tuple[str, ...]) -> None:
    """Have the users of these groups own a VM, and of no others."""
    ask(target, lambda client: client.change_vm_owner_groups(ip_address, names))


@click.command("get-vm-access-token")
@_IP
@click.option(
    "--lifetime",
    type=Duration(),
    default="1h",
    show_default=True,
    help="1m to 24h",
)
@click.pass_obj
def access_token(target: Target, ip_address: str, lifetime: int) -> None:
    """Print a token, in hex, by which anybody may have the VM for a while."""
    click.echo(ask(target, lambda client: client.get_vm_access_token(ip_address, lifetime)).hex())


@click.command("discard-vm-access-token")
@_IP
@click.pass_obj
def discard_access_token(target: Target, ip_address: str) -> None:
    """Have that token worth nothing any more."""
    ask(target, lambda client: client.discard_vm_access_token(ip_address))
