"""``vm-control``: what a VM's QEMU said."""

import sys

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import IPv4, Target
from smallstack.client.hypervisor import HypervisorClient

_IP = click.argument("ip_address", metavar="IP", type=IPv4())


@click.command("list-vm-virtualiser-log-files")
@_IP
@click.pass_obj
def list_logs(target: Target, ip_address: str) -> None:
    """Print the names of a VM's QEMU logs, with their bytes."""
    found = ask(target, lambda client: client.list_vm_virtualiser_log_files(ip_address))
    for name, length in found.items():
        click.echo(f"{name} {length}")


@click.command("get-vm-virtualiser-log-file")
@_IP
@click.argument("name")
@click.pass_obj
def get_log(target: Target, ip_address: str, name: str) -> None:
    """Print one of them."""

    async def work(client: HypervisorClient) -> None:
        async for data in client.get_vm_virtualiser_log_file(ip_address, name):
            sys.stdout.buffer.write(data)

    ask(target, work)
