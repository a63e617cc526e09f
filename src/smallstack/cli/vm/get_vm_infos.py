"""``vm-control get-vm-infos``: the records of all VMs."""

import json

import click

from smallstack.cli.connect import connector
from smallstack.cli.options import Target, run
from smallstack.cli.output import emit_rows, format_option
from smallstack.cli.vm.record import COLUMNS, summary, vm_record
from smallstack.proto.vm import VmInfo


@click.command("get-vm-infos")
@format_option()
@click.pass_obj
def command(target: Target, output: str) -> None:
    """Print the records of all VMs: whole as JSON, their main fields otherwise."""

    async def work() -> list[VmInfo]:
        async with await connector(target)() as client:
            return await client.get_vm_infos()

    infos = run(work())
    if output == "json":
        print(json.dumps([vm_record(info) for info in infos], indent=4))
    else:
        emit_rows([summary(info) for info in infos], output, COLUMNS)
