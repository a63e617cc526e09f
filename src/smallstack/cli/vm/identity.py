"""``vm-control``: who a VM is."""

from pathlib import Path

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import IPv4, Target

_IP = click.argument("ip_address", metavar="IP", type=IPv4())
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("replace-vm-credentials")
@_IP
@click.argument("certificate", required=False, type=_FILE)
@click.argument("key", required=False, type=_FILE)
@click.pass_obj
def credentials(
    target: Target, ip_address: str, certificate: Path | None, key: Path | None
) -> None:
    """Give a VM a certificate and its key, in PEM, which it finds at 169.254.169.254.

    Without files it has none any more.
    """
    if certificate is not None and key is None:
        raise click.UsageError("name the certificate's key too")
    pair = [b"" if place is None else place.read_bytes() for place in (certificate, key)]
    ask(target, lambda client: client.replace_vm_credentials(ip_address, pair[0], pair[1]))


@click.command("replace-vm-identity")
@_IP
@click.argument("certificate", required=False, type=_FILE)
@click.pass_obj
def identity(target: Target, ip_address: str, certificate: Path | None) -> None:
    """Give a VM a role, whose credentials the Hypervisor gets of its identity provider.

    The certificate, in PEM, is one by which the provider lets the Hypervisor ask for the role, for
    the key that `hyper-control get-public-key` prints. Without one the role is taken away.
    """
    data = b"" if certificate is None else certificate.read_bytes()
    ask(target, lambda client: client.replace_vm_identity(ip_address, data))
