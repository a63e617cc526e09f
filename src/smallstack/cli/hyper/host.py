"""``hyper-control``: the Hypervisor's state, owners and keys."""

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import Duration, IPv4, Target
from smallstack.client.hypervisor import HypervisorClient


@click.command("disable")
@click.pass_obj
def disable(target: Target) -> None:
    """Have the Hypervisor create and start no VMs any more."""
    ask(target, lambda client: client.set_disabled_state(True))


@click.command("enable")
@click.pass_obj
def enable(target: Target) -> None:
    """Have it create and start VMs again."""
    ask(target, lambda client: client.set_disabled_state(False))


@click.command("change-owners")
@click.option("--user", "users", multiple=True, help="repeatable")
@click.option("--group", "groups", multiple=True, help="repeatable")
@click.pass_obj
def owners(target: Target, users: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Have these users and groups, and no others, own the Hypervisor: they may call anything."""
    ask(target, lambda client: client.change_owners(users, groups))


@click.command("get-public-key")
@click.pass_obj
def public_key(target: Target) -> None:
    """Print the Hypervisor's public key."""
    click.echo(ask(target, lambda client: client.get_public_key()), nl=False)


@click.command("get-identity-provider")
@click.pass_obj
def identity_provider(target: Target) -> None:
    """Print where VMs' credentials come from."""
    click.echo(ask(target, lambda client: client.get_identity_provider()))


@click.command("list-volume-directories")
@click.pass_obj
def volume_directories(target: Target) -> None:
    """Print where volumes lie; only on the Hypervisor's own machine."""
    for directory in ask(target, lambda client: client.list_volume_directories()):
        click.echo(directory)


@click.command("list-subnets")
@click.pass_obj
def subnets(target: Target) -> None:
    """Print the subnets the Hypervisor knows."""
    for found in ask(target, lambda client: client.list_subnets()):
        click.echo(f"{found.id} {found.ip_gateway} {found.ip_mask}")


@click.command("hold-lock")
@click.argument("timeout", type=Duration())
@click.pass_obj
def hold_lock(target: Target, timeout: int) -> None:
    """Have creates, and changes of addresses, wait for so long: a minute at most."""
    ask(target, lambda client: client.hold_lock(timeout))


@click.command("hold-vm-lock")
@click.argument("ip_address", metavar="IP", type=IPv4())
@click.argument("timeout", type=Duration())
@click.pass_obj
def hold_vm_lock(target: Target, ip_address: str, timeout: int) -> None:
    """Keep everybody from changing a VM for so long: a minute at most."""
    ask(target, lambda client: client.hold_vm_lock(ip_address, timeout))


@click.command("get-updates")
@click.option("--count", type=click.IntRange(0), default=0, help="messages; 0: until Ctrl-C")
@click.pass_obj
def updates(target: Target, count: int) -> None:
    """Print the Hypervisor's state, then every change of it: JSON, one object a line."""
    from smallstack.srpc.json_coder import to_json

    async def work(client: HypervisorClient) -> None:
        told = 0
        async for update in client.get_updates():
            click.echo(to_json(update))
            told += 1
            if told == count:
                return

    ask(target, work)


@click.command("watch-dhcp")
@click.option("--interface", default="", help="one bridge; default: all")
@click.option("--max-packets", type=click.IntRange(0), default=0, help="0: until Ctrl-C")
@click.pass_obj
def watch_dhcp(target: Target, interface: str, max_packets: int) -> None:
    """Print DHCP requests as they come in: the bridge, and the message in hex."""

    async def work(client: HypervisorClient) -> None:
        async for bridge, packet in client.watch_dhcp(interface, max_packets):
            click.echo(f"{bridge} {packet.hex()}")

    ask(target, work)


@click.command("register-external-leases")
@click.argument("leases", metavar="[MAC;IP]...", nargs=-1)
@click.pass_obj
def external_leases(target: Target, leases: tuple[str, ...]) -> None:
    """Have machines that are no VMs get these addresses by DHCP, and no others."""
    from smallstack.proto.vm import Address

    addresses = []
    for lease in leases:
        mac, separator, ip = lease.partition(";")
        if not separator:
            raise click.BadParameter(f"{lease!r} is no lease: write MAC;IP")
        addresses.append(Address(mac_address=mac, ip_address=ip))
    ask(target, lambda client: client.register_external_leases(addresses))
