"""``vm-control get-vm-info``: all that the Hypervisor knows of one VM."""

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import IPv4, Target, run
from smallstack.cli.output import emit_record, format_option
from smallstack.cli.vm.record import vm_record
from smallstack.proto.vm import VmInfo


@click.command("get-vm-info")
@click.argument("ip_address", metavar="IP", type=IPv4())
@format_option("json")
@click.pass_obj
def command(target: Target, ip_address: str, output: str) -> None:
    """Print the record of a VM."""

    async def work() -> VmInfo:
        async with await connector(target)() as client:
            return await client.get_vm_info(ip_address)

    emit_record(vm_record(run(work())), output)
