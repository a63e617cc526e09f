"""``vm-control``: the volumes of a VM, and their snapshots."""

import os
from pathlib import Path

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import Bytes, IPv4, Target
from smallstack.client.hypervisor import HypervisorClient

_IP = click.argument("ip_address", metavar="IP", type=IPv4())
_INDEX = click.argument("index", type=click.IntRange(0))
_NAME = click.argument("name", default="")
_FORCE = click.option("--force", is_flag=True, help="even if the VM is not stopped")


@click.command("add-vm-volumes")
@_IP
@click.argument("sizes", metavar="SIZE...", type=Bytes(), nargs=-1, required=True)
@click.pass_obj
def add(target: Target, ip_address: str, sizes: tuple[int, ...]) -> None:
    """Give a stopped VM further, empty volumes: 512M, 2G."""
    ask(target, lambda client: client.add_vm_volumes(ip_address, sizes))


@click.command("delete-vm-volume")
@_IP
@_INDEX
@click.pass_obj
def delete(target: Target, ip_address: str, index: int) -> None:
    """Delete a volume of a stopped VM; not the first, which is 0."""
    ask(target, lambda client: client.delete_vm_volume(ip_address, index))


@click.command("reorder-vm-volumes")
@_IP
@click.argument("indices", metavar="INDEX...", type=click.IntRange(0), nargs=-1, required=True)
@click.pass_obj
def reorder(target: Target, ip_address: str, indices: tuple[int, ...]) -> None:
    """Have the volumes of a stopped VM in this order; without 0 the first one stays."""
    ask(target, lambda client: client.reorder_vm_volumes(ip_address, indices))


@click.command("change-vm-volume-size")
@_IP
@_INDEX
@click.argument("size", type=Bytes())
@click.pass_obj
def resize(target: Target, ip_address: str, index: int, size: int) -> None:
    """Give a volume of a stopped VM another size, and the ext file system on it."""
    ask(target, lambda client: client.change_vm_volume_size(ip_address, index, size))


@click.command("change-vm-volume-storage-index")
@_IP
@_INDEX
@click.argument("storage_index", metavar="DIRECTORY", type=click.IntRange(0))
@click.pass_obj
def move(target: Target, ip_address: str, index: int, storage_index: int) -> None:
    """Move a volume of a stopped VM to another of the Hypervisor's volume directories."""
    ask(
        target,
        lambda client: client.change_vm_volume_storage_index(ip_address, index, storage_index),
    )


@click.command("get-vm-volume")
@_IP
@_INDEX
@click.argument("place", metavar="FILE", type=click.Path(path_type=Path))
@click.pass_obj
def get(target: Target, ip_address: str, index: int, place: Path) -> None:
    """Make a file what a volume is; of what is in it already nothing is sent again."""

    async def work(client: HypervisorClient) -> int:
        volumes = (await client.get_vm_info(ip_address)).volumes
        if index >= len(volumes):
            raise click.ClickException(
                f"there is no volume {index}: {ip_address} has {len(volumes)}"
            )
        volume = volumes[index]
        size = max(volume.size, volume.virtual_size)
        try:
            fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                return await client.get_vm_volume(ip_address, index, fd, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise click.ClickException(f"{place}: {error.strerror or error}") from error

    click.echo(f"{ask(target, work)} bytes were sent", err=True)


@click.command("get-vm-volume-storage-configuration")
@_IP
@click.pass_obj
def storage(target: Target, ip_address: str) -> None:
    """Print the space of the volume directories, and in which of them each volume is."""
    from smallstack.srpc.json_coder import to_json

    found = ask(target, lambda client: client.get_vm_volume_storage_configuration(ip_address))
    click.echo(to_json(found, indent=4))


@click.command("snapshot-vm")
@_IP
@_NAME
@_FORCE
@click.option("--root-only", is_flag=True, help="the first volume alone")
@click.pass_obj
def snapshot(target: Target, ip_address: str, name: str, force: bool, root_only: bool) -> None:
    """Keep the present state of a stopped VM's volumes, under a name."""
    ask(
        target,
        lambda client: client.snapshot_vm(ip_address, name, force=force, root_only=root_only),
    )


@click.command("restore-vm-from-snapshot")
@_IP
@_NAME
@_FORCE
@click.option("--retain", is_flag=True, help="keep the snapshot")
@click.pass_obj
def restore(target: Target, ip_address: str, name: str, force: bool, retain: bool) -> None:
    """Go back to a state that was kept."""
    ask(
        target,
        lambda client: client.restore_vm_from_snapshot(
            ip_address, name, force=force, retain=retain
        ),
    )


@click.command("discard-vm-snapshot")
@_IP
@_NAME
@click.pass_obj
def discard(target: Target, ip_address: str, name: str) -> None:
    """Forget a state that was kept."""
    ask(target, lambda client: client.discard_vm_snapshot(ip_address, name))
