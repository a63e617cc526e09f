"""``vm-control change-vm-…``: what a VM is, its devices and its size."""

import click

from smallstack.cli.connect import ask
from smallstack.cli.options import IPv4, Mebibytes, Target
from smallstack.cli.tags import parse_tags
from smallstack.proto.enums import ConsoleType, MachineType, VolumeInterface
from smallstack.proto.kinds import Word

_IP = click.argument("ip_address", metavar="IP", type=IPv4())


def _word(kind: type[Word], text: str) -> Word:
    """A value of an enumeration by its word."""
    for value in kind:
        if value.text == text:
            return value
    known = ", ".join(value.text for value in kind)
    raise click.BadParameter(f"{text!r}: there are {known}")


@click.command("change-vm-tags")
@_IP
@click.argument("tags", metavar="[KEY=VALUE]...", nargs=-1)
@click.pass_obj
def tags(target: Target, ip_address: str, tags: tuple[str, ...]) -> None:
    """Give a VM these tags and no others."""
    wanted = {key: values[-1] for key, values in parse_tags(tags).items()}
    ask(target, lambda client: client.change_vm_tags(ip_address, wanted))


@click.command("change-vm-hostname")
@_IP
@click.argument("hostname")
@click.pass_obj
def hostname(target: Target, ip_address: str, hostname: str) -> None:
    """Give a VM another host name; it learns it by its next DHCP request."""
    ask(target, lambda client: client.change_vm_hostname(ip_address, hostname))


@click.command("change-vm-cpu-priority")
@_IP
@click.argument("priority", type=int)
@click.pass_obj
def cpu_priority(target: Target, ip_address: str, priority: int) -> None:
    """Give a VM another priority, -20 to 19: less is more; put -- before a negative one."""
    ask(target, lambda client: client.change_vm_cpu_priority(ip_address, priority))


@click.command("change-vm-destroy-protection")
@_IP
@click.argument("protect", type=bool)
@click.pass_obj
def destroy_protection(target: Target, ip_address: str, protect: bool) -> None:
    """Keep a running VM from being destroyed (true), or no more (false)."""
    ask(target, lambda client: client.change_vm_destroy_protection(ip_address, protect))


@click.command("change-vm-console-type")
@_IP
@click.argument("console")
@click.pass_obj
def console_type(target: Target, ip_address: str, console: str) -> None:
    """Give a stopped VM another console: none, dummy or vnc."""
    wanted = ConsoleType(_word(ConsoleType, console))
    ask(target, lambda client: client.change_vm_console_type(ip_address, wanted))


@click.command("change-vm-machine-type")
@_IP
@click.argument("machine")
@click.pass_obj
def machine_type(target: Target, ip_address: str, machine: str) -> None:
    """Have a stopped VM emulated as another machine: auto or q35."""
    wanted = MachineType(_word(MachineType, machine))
    ask(target, lambda client: client.change_vm_machine_type(ip_address, wanted))


@click.command("change-vm-num-network-queues")
@_IP
@click.argument("queues", metavar="QUEUES...", type=click.IntRange(0), nargs=-1, required=True)
@click.pass_obj
def num_network_queues(target: Target, ip_address: str, queues: tuple[int, ...]) -> None:
    """Give each network interface of a stopped VM so many queues."""
    ask(target, lambda client: client.change_vm_num_network_queues(ip_address, queues))


@click.command("change-vm-volume-interfaces")
@_IP
@click.argument("interfaces", metavar="INTERFACE...", nargs=-1, required=True)
@click.pass_obj
def volume_interfaces(target: Target, ip_address: str, interfaces: tuple[str, ...]) -> None:
    """Put each volume of a stopped VM behind an interface: virtio, ide or nvme."""
    wanted = [VolumeInterface(_word(VolumeInterface, name)) for name in interfaces]
    ask(target, lambda client: client.change_vm_volume_interfaces(ip_address, wanted))


@click.command("change-vm-memory")
@_IP
@click.argument("memory", type=Mebibytes())
@click.pass_obj
def memory(target: Target, ip_address: str, memory: int) -> None:
    """Give a stopped VM another amount of memory: 512M, 2G."""
    ask(target, lambda client: client.change_vm_size(ip_address, memory_in_mib=memory))


@click.command("change-vm-cpus")
@_IP
@click.argument("milli_cpus", metavar="MILLI-CPUS", type=click.IntRange(1))
@click.pass_obj
def cpus(target: Target, ip_address: str, milli_cpus: int) -> None:
    """Give a VM another share of the processors; stopped, if it becomes other processors."""
    ask(target, lambda client: client.change_vm_size(ip_address, milli_cpus=milli_cpus))


@click.command("change-vm-vcpus")
@_IP
@click.argument("count", type=click.IntRange(1))
@click.pass_obj
def vcpus(target: Target, ip_address: str, count: int) -> None:
    """Have a stopped VM see so many processors."""
    ask(target, lambda client: client.change_vm_size(ip_address, virtual_cpus=count))


@click.command("change-vm-subnet")
@_IP
@click.argument("subnet_id", metavar="SUBNET")
@click.pass_obj
def subnet(target: Target, ip_address: str, subnet_id: str) -> None:
    """Give a stopped VM an address in another subnet, and print it."""
    click.echo(ask(target, lambda client: client.change_vm_subnet(ip_address, subnet_id)))
